// How numbers are written.

const SCALES = [
  [1e12, "TB"],
  [1e9, "GB"],
  [1e6, "MB"],
  [1e3, "kB"],
];

const short = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toString());

/** 1234567 as "1.2 MB". */
export function bytes(value) {
  const [size, unit] = SCALES.find(([size]) => value >= size * 0.9995) ?? [1, "B"];
  return `${size === 1 ? Math.round(value) : short(value / size)} ${unit}`;
}

/** 0.123 as "12 %". */
export const percent = (share) => `${Math.round(share * 100)} %`;

/** "1 event", "2 events". */
export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** A round number, not below `value`: 1, 2 or 5 times a power of ten. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((each) => each >= value * 0.9999);
}
