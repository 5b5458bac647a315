// Readings of a machine as strips over the last minutes, like the drum of a barograph.

import { bytes, count, percent, roundUp } from "./units.js";

const SVG = "http://www.w3.org/2000/svg";
// How much time is shown: as little as holds what there is, so that a new chart is not empty.
const WINDOWS = [
  [40_000, ["40 s ago", "30 s", "20 s", "10 s", "now"]],
  [80_000, ["80 s ago", "60 s", "40 s", "20 s", "now"]],
  [120_000, ["2 min ago", "90 s", "1 min", "30 s", "now"]],
];
const LONGEST_MS = WINDOWS.at(-1)[0];
const MOST = 1500;
const TOP = 18;
const PEN = 4;
const GRID = [0.25, 0.5, 0.75];

const still = matchMedia("(prefers-reduced-motion: reduce)");

const draw = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// What no machine has would make the paths unreadable.
const BEYOND = 1e15;

const number = (value) => (Number.isFinite(value) && value >= 0 ? Math.min(value, BEYOND) : 0);

/** What others publish is checked: whatever is no number counts as 0. */
function read(data) {
  const load = Array.isArray(data?.load) ? data.load.map(number) : [0, 0, 0];
  return {
    load,
    cpus: number(data?.cpus) || 1,
    cpu: Math.min(number(data?.cpu), 1),
    used: number(data?.memory_used_bytes),
    total: number(data?.memory_total_bytes) || 1,
    incoming: number(data?.network_in_bytes_s),
    outgoing: number(data?.network_out_bytes_s),
  };
}

const most = (points, of) => points.reduce((top, point) => Math.max(top, of(point)), 0);

const STRIPS = [
  {
    title: "Load",
    area: ({ cpu, cpus }) => cpu * cpus,
    line: ({ load }) => load[0],
    top: (points) => {
      const peak = most(points, ({ load, cpu, cpus }) => Math.max(load[0], cpu * cpus));
      return Math.max(1, Math.min(points.at(-1).cpus, roundUp(peak * 2 || 1)), peak * 1.1);
    },
    mark: ({ cpus }, top) => {
      if (top < cpus) return [top, `${top} of ${cpus} CPUs`];
      // More than the machine can do: the dots are below the top, and the label says whose they are.
      return [cpus, top > cpus ? `··· ${count(cpus, "CPU")}` : count(cpus, "CPU")];
    },
    value: ({ load }) => load[0].toFixed(2),
    detail: ({ cpu, load }) => `CPU ${percent(cpu)} · ${(load[1] ?? 0).toFixed(2)} in 5 min`,
  },
  {
    title: "Memory",
    area: ({ used }) => used,
    top: (points) => Math.min(roundUp(most(points, ({ used }) => used) * 1.2 || 1), points.at(-1).total),
    mark: (_, top) => [top, bytes(top)],
    value: ({ used }) => bytes(used),
    detail: ({ used, total }) => `${percent(used / total)} of ${bytes(total)}`,
  },
  {
    title: "Network",
    area: ({ incoming }) => incoming,
    below: ({ outgoing }) => outgoing,
    top: (points) =>
      roundUp(Math.max(1000, most(points, (each) => Math.max(each.incoming, each.outgoing)))),
    mark: (_, top) => [top, `${bytes(top)}/s`],
    value: ({ incoming }) => `${bytes(incoming)}/s in`,
    detail: ({ outgoing }) => `${bytes(outgoing)}/s out`,
  },
];

/** All strips; they share the points, the window and the frame. */
export class Chart {
  #clock;
  #points = [];
  #ids = new Set();
  #strips;
  #frame = 0;
  #timer = 0;
  #stale = true;
  #shown = -1;
  #axis;
  #span = 0;
  #cut = false;

  constructor(list, axis, clock) {
    this.#clock = clock;
    this.#axis = axis;
    this.#strips = STRIPS.map((kind, index) => new Strip(kind, index, list));
    new ResizeObserver(() => this.#redraw()).observe(list);
    document.addEventListener("visibilitychange", () => this.#redraw());
    still.addEventListener("change", () => this.#redraw());
  }

  /** Take a reading; `late` if it was missed and came after. */
  add({ id, time, data }, late) {
    if (this.#ids.has(id)) return;
    this.#ids.add(id);
    this.#points.push({ id, time, late, ...read(data) });
    this.#points.sort((one, other) => one.time - other.time);
    while (this.#points.length > MOST) this.#ids.delete(this.#points.shift().id);
    this.#redraw();
  }

  /** Whether it is known that nothing can come. */
  set cut(cut) {
    this.#cut = cut;
    this.#redraw();
  }

  /** How long ago the newest reading was made; Infinity without any. */
  get age() {
    return this.#clock.now() - (this.#points.at(-1)?.time ?? -Infinity);
  }

  /** Whether a reading that came late is in sight. */
  get late() {
    const from = this.#clock.now() - LONGEST_MS;
    return this.#points.some(({ time, late }) => late && time > from);
  }

  #redraw() {
    this.#stale = true;
    this.#frame ||= requestAnimationFrame(this.#tick);
  }

  #tick = () => {
    this.#frame = 0;
    if (document.hidden || !this.#points.length) return;
    const newest = this.#points.at(-1);
    const step = interval(this.#points);
    const now = this.#clock.now();
    // One reading behind, so that the line has an end to move to while it scrolls.
    const lag = still.matches ? 0 : Math.min(step * 1.2, 10_000);
    const settled = still.matches && now - newest.time < step * 2.5;
    const edge = settled ? newest.time : Math.floor(now - lag);
    if (this.#stale) {
      const from = edge - LONGEST_MS - step * 2;
      while (this.#points.length > 2 && this.#points[1].time < from) {
        this.#ids.delete(this.#points.shift().id);
      }
      this.#fit(edge);
      for (const strip of this.#strips) strip.plot(this.#points, step, this.#span);
      this.#stale = false;
      this.#shown = -1;
    }
    // Half a pixel is the least that can be seen.
    const pixel = this.#span / (this.#strips[0].width * devicePixelRatio || 1);
    if (this.#shown < 0 || Math.abs(edge - this.#shown) > pixel / 2) {
      this.#shown = edge;
      for (const strip of this.#strips) strip.scroll(edge, this.#cut ? 0 : step * 2.5);
    }
    clearTimeout(this.#timer);
    if (still.matches) this.#timer = setTimeout(() => this.#redraw(), 1000);
    else this.#frame = requestAnimationFrame(this.#tick);
  };

  #fit(edge) {
    const age = edge - this.#points[0].time;
    const [span, labels] = WINDOWS.find(([span]) => age <= span) ?? WINDOWS.at(-1);
    if (span === this.#span) return;
    this.#span = span;
    this.#axis.replaceChildren(
      ...labels.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
  }
}

/** The usual time between two readings, in ms. */
function interval(points) {
  const recent = points.slice(-30);
  const steps = recent.slice(1).map(({ time }, i) => time - recent[i].time);
  steps.sort((one, other) => one - other);
  return Math.max(steps[steps.length >> 1] ?? 1000, 100);
}

class Strip {
  width = 0;
  #kind;
  #svg;
  // An <svg> of its own cuts off what is right of the pen.
  #paper = draw("svg");
  #moving = draw("g");
  #paths = {};
  #hole = draw("rect", { class: "hole", y: 0 });
  #pen = draw("circle", { class: "pen", r: 0 });
  #mark = draw("text", { class: "mark" });
  #rule = draw("line", { class: "rule", x1: 0 });
  #zero = draw("line", { class: "zero", x1: 0 });
  #grid = GRID.map(() => draw("line", { class: "grid", y1: 0 }));
  #value = document.createElement("span");
  #detail = document.createElement("span");
  #points = [];
  #origin = 0;
  #span = 1;
  #height = 0;
  #top = 1;

  constructor(kind, index, list) {
    this.#kind = kind;
    const hatch = `late-${index}`;
    const pattern = draw(
      "pattern",
      { id: hatch, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      draw("rect", { class: "hatch", width: 2, height: 5 }),
    );
    for (const name of ["area", "late-area", "line", "late-line", "second", "late-second"]) {
      this.#paths[name] = draw("path", { class: name });
    }
    this.#paths["late-area"].setAttribute("fill", `url(#${hatch})`);
    this.#moving.append(this.#hole, ...Object.values(this.#paths));
    this.#svg = draw("svg", { "aria-hidden": "true", focusable: "false" }, draw("defs", {}, pattern));
    this.#paper.append(this.#moving);
    this.#svg.append(...this.#grid, this.#rule, this.#paper, this.#zero, this.#mark, this.#pen);
    const row = document.createElement("div");
    row.className = "strip";
    const title = document.createElement("dt");
    title.className = "label";
    title.textContent = kind.title;
    const now = document.createElement("dd");
    now.className = "now";
    this.#value.className = "value";
    this.#value.textContent = "–";
    this.#detail.className = "detail";
    now.append(this.#value, " ", this.#detail);
    const picture = document.createElement("dd");
    picture.className = "picture";
    picture.append(this.#svg);
    row.append(title, now, picture);
    list.append(row);
  }

  #y(value) {
    const space = this.#kind.below ? (this.#height - TOP) / 2 : this.#height - TOP - 1;
    return TOP + space - (value / this.#top) * space;
  }

  #x(time, origin = this.#origin) {
    return ((time - origin) / this.#span) * (this.width - PEN);
  }

  /** Draw the points anew. */
  plot(points, step, span) {
    const { clientWidth, clientHeight } = this.#svg;
    this.#span = span;
    this.width = clientWidth;
    this.#height = clientHeight;
    this.#points = points;
    this.#origin = points[0].time;
    const newest = points.at(-1);
    this.#top = this.#kind.top(points) || 1;
    this.#svg.setAttribute("viewBox", `0 0 ${clientWidth} ${clientHeight}`);
    this.#frame(newest);
    const runs = split(points, step * 2.5);
    const { area, line, below } = this.#kind;
    this.#trace("area", runs, area, true);
    this.#trace("line", runs, line ?? area, false);
    if (below) this.#trace("second", runs, (point) => -below(point), false);
    this.#value.textContent = this.#kind.value(newest);
    this.#detail.textContent = this.#kind.detail(newest);
  }

  #frame(newest) {
    const [at, text] = this.#kind.mark(newest, this.#top);
    const set = (node, attributes) => {
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    };
    const [high, zero] = [this.#y(at), this.#y(0)];
    set(this.#rule, { x2: this.width, y1: high, y2: high });
    set(this.#zero, { x2: this.width, y1: zero, y2: zero });
    // At the top, where no line comes.
    set(this.#mark, { x: this.width - PEN, y: TOP - 5 });
    set(this.#paper, { width: Math.max(this.width - PEN, 0), height: this.#height });
    if (this.#mark.textContent !== text) this.#mark.textContent = text;
    this.#grid.forEach((line, i) => {
      const x = GRID[i] * (this.width - PEN);
      set(line, { x1: x, x2: x, y2: this.#height });
    });
  }

  #trace(name, runs, of, closed) {
    const found = { "": "", "late-": "" };
    const base = this.#y(0).toFixed(1);
    for (const { late, points } of runs) {
      const corners = points.map((each) => `${this.#x(each.time).toFixed(1)} ${this.#y(of(each)).toFixed(1)}`);
      let path = `M${corners.join("L")}`;
      if (closed) {
        const [first, last] = [points[0], points.at(-1)].map(({ time }) => this.#x(time).toFixed(1));
        path += `L${last} ${base}L${first} ${base}Z`;
      }
      found[late ? "late-" : ""] += path;
    }
    for (const [kind, path] of Object.entries(found)) this.#paths[kind + name].setAttribute("d", path);
  }

  /** Move so that `edge` is at the right end; after `patience` ms without a reading there is a hole. */
  scroll(edge, patience) {
    const right = this.width - PEN;
    const newest = this.#points.at(-1);
    const behind = Math.max(edge - newest.time, 0);
    this.#moving.setAttribute("transform", `translate(${(right - this.#x(edge)).toFixed(2)})`);
    this.#hole.setAttribute("height", this.#height);
    this.#hole.setAttribute("x", this.#x(newest.time));
    this.#hole.setAttribute("width", behind > patience ? Math.min(this.#x(behind, 0), this.width * 2) : 0);
    const { late, value } = this.#at(edge);
    this.#pen.setAttribute("class", late ? "pen late" : "pen");
    this.#pen.setAttribute("cx", right - this.#x(behind, 0));
    this.#pen.setAttribute("r", 3);
    this.#pen.setAttribute("cy", this.#y(value));
  }

  /** What the line shows at `edge`, between the two points around it. */
  #at(edge) {
    const of = this.#kind.line ?? this.#kind.area;
    const points = this.#points;
    let i = points.length - 1;
    while (i > 0 && points[i - 1].time >= edge) i -= 1;
    const [before, after] = [points[i - 1] ?? points[i], points[i]];
    const share = Math.min(Math.max((edge - before.time) / (after.time - before.time || 1), 0), 1);
    return { late: after.late, value: of(before) + (of(after) - of(before)) * share };
  }
}

/** Points as runs without a gap, each of one kind; a run begins where the one before ends. */
function split(points, gap) {
  const runs = [];
  let run = { late: points[0].late, points: [points[0]] };
  for (let i = 1; i < points.length; i += 1) {
    const [before, point] = [points[i - 1], points[i]];
    const torn = point.time - before.time > gap;
    if (torn || point.late !== run.late) {
      runs.push(run);
      run = { late: point.late, points: torn ? [] : [before] };
    }
    run.points.push(point);
  }
  runs.push(run);
  return runs;
}
