// A picture of the connection: lines of wind from the node to this page, and a gust for each event.

const SVG = "http://www.w3.org/2000/svg";
const LINES = 7;
const MOST_GUSTS = 24;
const STEP = 24;

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Draws into an `<svg>`; `data-cut` on it parts the lines. */
export class Wind {
  #svg;
  #paths = [];
  #gusts = 0;
  #next = 0;

  constructor(svg) {
    this.#svg = svg;
    for (let i = 0; i < LINES; i += 1) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("pathLength", "100");
      this.#paths.push(path);
    }
    svg.append(...this.#paths);
    new ResizeObserver(() => this.#lay()).observe(svg);
  }

  #lay() {
    const { clientWidth: width, clientHeight: height } = this.#svg;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#paths.forEach((path, i) => path.setAttribute("d", streamline(i, width, height)));
  }

  set cut(cut) {
    this.#svg.toggleAttribute("data-cut", cut);
  }

  /** Let one event pass; a few that come together follow each other. */
  gust(late) {
    if (calm.matches || document.hidden || this.#gusts >= MOST_GUSTS) return;
    const gust = this.#paths[(this.#next = (this.#next + 3) % LINES)].cloneNode();
    gust.setAttribute("class", late ? "gust late" : "gust");
    const length = 5 + Math.random() * 6;
    gust.setAttribute("stroke-dasharray", `${length} 300`);
    this.#svg.append(gust);
    const passing = gust.animate(
      { strokeDashoffset: [length, -100], opacity: [0.2, 1, 1, 0.2] },
      { duration: 1100, delay: this.#gusts * 70, easing: "cubic-bezier(.35,.1,.3,1)", fill: "both" },
    );
    this.#gusts += 1;
    passing.onfinish = () => {
      gust.remove();
      this.#gusts -= 1;
    };
  }
}

function streamline(i, width, height) {
  const middle = (LINES - 1) / 2;
  const lane = (i - middle) / middle;
  const points = [];
  for (let x = -STEP; x <= width + STEP; x += STEP) {
    const along = (x / Math.max(width, 1)) * Math.PI;
    // Spread in the middle, gathered at both ends, each swaying a little later than its neighbour.
    const spread = 0.3 + 0.7 * Math.sin(Math.min(Math.max(along, 0), Math.PI));
    const sway = Math.sin(x / (70 + width / 14) + i * 0.55) * height * 0.09;
    points.push(`${x} ${(height / 2 + lane * height * 0.34 * spread + sway).toFixed(1)}`);
  }
  return `M${points.join("L")}`;
}
