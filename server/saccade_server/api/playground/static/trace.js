// The `trace` of an answer as typed arrays that know their axes.

const TYPES = {
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  uint8: Uint8Array,
};

/** An array of a trace: `at({row: 3, layer: 1})` is the part with these coordinates. */
export class Traced {
  constructor(data, shape, axes) {
    Object.assign(this, { data, shape, axes });
  }

  size(axis) {
    const place = this.axes.indexOf(axis);
    return place < 0 ? null : this.shape[place];
  }

  at(coordinates) {
    let { data, shape, axes } = this;
    for (const [axis, index] of Object.entries(coordinates)) {
      const place = axes.indexOf(axis);
      if (place < 0) continue;
      ({ data, shape } = along(data, shape, place, index));
      axes = axes.filter((_, k) => k !== place);
    }
    return new Traced(data, shape, axes);
  }

  /** The mean over an axis, if there is one. */
  mean(axis) {
    const size = this.size(axis);
    if (!size) return this;
    const parts = Array.from({ length: size }, (_, index) => this.at({ [axis]: index }));
    const sums = Float64Array.from(parts[0].data, (_, k) => parts.reduce((s, p) => s + p.data[k], 0));
    return new Traced(sums.map((sum) => sum / size), parts[0].shape, parts[0].axes);
  }
}

function along(data, shape, place, index) {
  const inner = shape.slice(place + 1).reduce((x, y) => x * y, 1);
  const outer = shape.slice(0, place).reduce((x, y) => x * y, 1);
  const size = shape[place];
  const found = new Float64Array(outer * inner);
  for (let o = 0; o < outer; o++) {
    const start = (o * size + index) * inner;
    found.set(data.slice(start, start + inner), o * inner);
  }
  return { data: found, shape: [...shape.slice(0, place), ...shape.slice(place + 1)] };
}

function decode({ dtype, data }) {
  if (typeof data !== "string") return Float64Array.from([data].flat(Infinity), (value) => value ?? NaN);
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  if (!TYPES[dtype]) throw new Error(`The page cannot read arrays of ${dtype}.`);
  return new TYPES[dtype](bytes.buffer);
}

/** All arrays of an answer's trace, by name. */
export function arraysOf(trace) {
  const entries = Object.entries(trace?.arrays ?? {}).filter(([, array]) => array.data !== undefined);
  return Object.fromEntries(
    entries.map(([name, array]) => [name, new Traced(decode(array), array.shape, array.axes)]),
  );
}
