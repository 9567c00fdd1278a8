// Where a token looked: attention over the picture, drawn on it.

import { useEffect, useRef, useState } from "preact/hooks";
import { html, names } from "./html.js";
import { isSmall, styleOf } from "./regions.js";
import { Traced } from "./trace.js";

// Anchors of a colour scale from nothing to most; lightness grows all the way.
const SCALE = [
  [12, 8, 38, 0.4],
  [87, 21, 110, 0.5],
  [187, 55, 84, 0.6],
  [249, 142, 9, 0.7],
  [252, 255, 164, 0.85],
];

function colour(share) {
  const place = Math.min(1, Math.max(0, share)) * (SCALE.length - 1);
  const low = Math.min(SCALE.length - 2, Math.floor(place));
  return SCALE[low].map((from, k) => from + (SCALE[low + 1][k] - from) * (place - low));
}

/** The views of the picture that a trace has maps of: their names and places in it. */
export function viewsOf(answer) {
  const views = answer.trace?.images?.[0] ?? [];
  return views.map(({ box }, index) => ({
    box: box ?? [0, 0, 1, 1],
    name: views.length > 1 ? `heatmaps.0.${index}` : "heatmaps.0",
  })).filter(({ name }) => answer.arrays[name]);
}

/** Whether an answer says which cells are sinks. */
export function knowsSinks(answer) {
  return viewsOf(answer).some(({ name }) => answer.arrays[`${name}.sinks`]);
}

/** The layers that heat maps tell apart; [] if they are a mean. */
export function layersOf(answer) {
  const [view] = viewsOf(answer);
  return view ? (answer.trace.arrays[view.name].coordinates?.layer ?? []) : [];
}

/**
 * The maps of one token: [{box, cells, width, height}].
 * `layer`: its place among the layers, or null for the mean; `sinks`: leave them in.
 */
export function mapsOf(answer, token, { layer, sinks }) {
  const row = rowOf(answer, token);
  if (row === null) return [];
  return viewsOf(answer).map(({ name, box }) => {
    const array = answer.arrays[name].at({ row });
    const shown = sinks ? array : withoutSinks(array, answer.arrays[`${name}.sinks`]);
    const map = layer === null ? shown.mean("layer") : shown.at({ layer });
    return { box, cells: map.data, width: map.size("width"), height: map.size("height") };
  });
}

/** The place of an answer's token among the rows of an array, or null. */
export function rowOf(answer, token, name = viewsOf(answer)[0]?.name) {
  const rows = answer.trace?.arrays?.[name]?.coordinates?.row;
  if (!rows) return null;
  const found = rows.indexOf(answer.trace.prompt_tokens - 1 + token);
  return found < 0 ? null : found;
}

function withoutSinks(array, found) {
  if (!found) return array;
  const mask = found.axes.includes("layer") === array.axes.includes("layer") ? found : found.mean("layer");
  const data = array.data.map((value, k) => (mask.data[k] > 0 ? 0 : value));
  return new Traced(data, array.shape, array.axes);
}

export function highest(maps) {
  return maps.reduce((most, map) => map.cells.reduce((x, y) => (y > x ? y : x), most), 0);
}

export function total(maps) {
  return maps.reduce((sum, map) => map.cells.reduce((x, y) => x + (y || 0), sum), 0);
}

/** How much of [a1, a2) lies in [b1, b2), as a share of the first. */
const overlap = (a1, a2, b1, b2) => Math.max(0, Math.min(a2, b2) - Math.max(a1, b1)) / (a2 - a1);

/** The attention within boxes on the picture, which may lie over each other. */
export function inside(maps, boxes) {
  let sum = 0;
  for (const { box: [left, top, right, bottom], cells, width, height } of maps) {
    const [dx, dy] = [(right - left) / width, (bottom - top) / height];
    cells.forEach((value, k) => {
      const x = left + (k % width) * dx;
      const y = top + Math.floor(k / width) * dy;
      const covered = boxes.map(({ box }) => overlap(x, x + dx, box[0], box[2]) * overlap(y, y + dy, box[1], box[3]));
      sum += (value || 0) * Math.max(0, ...covered);
    });
  }
  return sum;
}

const ACROSS = ["left", "centre", "right"];
const DOWN = ["top", "middle", "bottom"];

/** Where the most attention is, in words. */
export function whereabouts(maps) {
  const thirds = new Float64Array(9);
  for (const { box, cells, width, height } of maps) {
    cells.forEach((value, k) => {
      const x = box[0] + (((k % width) + 0.5) / width) * (box[2] - box[0]);
      const y = box[1] + ((Math.floor(k / width) + 0.5) / height) * (box[3] - box[1]);
      if (x < 0 || x >= 1 || y < 0 || y >= 1) return;
      thirds[Math.floor(y * 3) * 3 + Math.floor(x * 3)] += value || 0;
    });
  }
  const best = thirds.indexOf(Math.max(...thirds));
  const [down, across] = [DOWN[Math.floor(best / 3)], ACROSS[best % 3]];
  return down === "middle" && across === "centre" ? "centre" : `${down} ${across}`;
}

/** The picture under its maps, with boxes. `most`: the value that gets the brightest colour. */
export function HeatMap({ picture, maps, most, label, boxes }) {
  const canvas = useRef(null);
  const [size, setSize] = useState(null);
  useEffect(() => {
    const watch = new ResizeObserver(([{ contentRect }]) => setSize(contentRect.width));
    watch.observe(canvas.current);
    return () => watch.disconnect();
  }, []);
  useEffect(() => paint(canvas.current, picture, maps, most), [maps, most, size, picture]);
  return html`
    <div class="heat">
      <img src=${picture.url} alt="" class=${names(isSmall(picture) && "small")} width=${picture.width} height=${picture.height} />
      <canvas ref=${canvas} role="img" aria-label=${label}></canvas>
      ${boxes.map(({ id, place, box, away }) => html`
        <i key="${id}-${place}" class=${names(away && "away")} style=${styleOf(box)}></i>`)}
    </div>`;
}

function paint(canvas, picture, maps, most) {
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  const height = Math.round((width * picture.height) / picture.width);
  if (!width) return;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  for (const map of maps) {
    const [left, top, right, bottom] = map.box;
    const place = [left * width, top * height, (right - left) * width, (bottom - top) * height];
    context.drawImage(tile(map, most), ...place);
  }
}

function tile({ cells, width, height }, most) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  cells.forEach((value, k) => {
    const [r, g, b, alpha] = colour(most ? (value || 0) / most : 0);
    pixels.data.set([r, g, b, alpha * 255], k * 4);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}
