// Boxes on the picture: drawn with a pointer, or set and moved with the keyboard.

import { useRef, useState } from "preact/hooks";
import { html, names } from "./html.js";

const SMALL = 200; // pixels; a smaller picture is shown with its pixels sharp
const TALLEST = 18; // rem
const LEAST = 0.02;
const STEP = 0.02;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const within = (value) => Math.min(1, Math.max(0, value));

function between([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

const large = ([left, top, right, bottom]) => right - left >= LEAST && bottom - top >= LEAST;

function moved([left, top, right, bottom], dx, dy) {
  const x = Math.min(Math.max(dx, -left), 1 - right);
  const y = Math.min(Math.max(dy, -top), 1 - bottom);
  return [left + x, top + y, right + x, bottom + y];
}

function resized([left, top, right, bottom], dx, dy) {
  const x = within(Math.max(right + dx, left + LEAST));
  return [left, top, x, within(Math.max(bottom + dy, top + LEAST))];
}

/**
 * The picture with boxes, as fractions [left, top, right, bottom] of its sides.
 * `canLook` false: the picture alone.
 */
export function Regions({ picture, regions, changeRegions, canLook }) {
  const frame = useRef(null);
  const [drawing, setDrawing] = useState(null);

  const place = (event) => {
    const { left, top, width, height } = frame.current.getBoundingClientRect();
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  };
  const begin = (event) => {
    if (!canLook || event.button !== 0 || event.target.closest(".region")) return;
    event.preventDefault();
    frame.current.setPointerCapture(event.pointerId);
    setDrawing({ from: place(event), to: place(event) });
  };
  const draw = (event) => drawing && setDrawing({ ...drawing, to: place(event) });
  const finish = () => {
    if (!drawing) return;
    const box = between(drawing.from, drawing.to);
    if (large(box)) changeRegions([...regions, box]);
    setDrawing(null);
  };
  const set = (index, box) => changeRegions(regions.map((old, k) => (k === index ? box : old)));
  const drop = (index) => changeRegions(regions.filter((_, k) => k !== index));
  const add = () => {
    changeRegions([...regions, [0.3, 0.3, 0.7, 0.7]]);
    setTimeout(() => frame.current.querySelector(".region:last-of-type")?.focus());
  };

  return html`
    <div class=${names("frame", canLook && "drawable")} ref=${frame} style=${widthOf(picture)} onPointerDown=${begin}
      onPointerMove=${draw} onPointerUp=${finish} onPointerCancel=${() => setDrawing(null)}>
      <img src=${picture.url} alt="The picture: ${picture.name}" class=${names(picture.width < SMALL && "small")}
        width=${picture.width} height=${picture.height} draggable=${false} />
      ${regions.map((box, index) => html`
        <${Region} key=${index} ...${{ box, index }} frame=${frame}
          set=${(next) => set(index, next)} drop=${() => drop(index)} />`)}
      ${drawing && html`<div class="region drawing" style=${styleOf(between(drawing.from, drawing.to))}></div>`}
    </div>
    ${canLook && html`
      <div class="region-tools">
        <button type="button" class="quiet" onClick=${add}>Add a region</button>
        ${regions.length > 0
          ? html`<button type="button" class="quiet" onClick=${() => changeRegions([])}>Remove all</button>`
          : html`<span class="hint">or draw one on the picture</span>`}
      </div>`}`;
}

/** As wide as there is room for, and not too tall. */
function widthOf({ width, height }) {
  return { width: `${(TALLEST * width) / height}rem` };
}

function styleOf([left, top, right, bottom]) {
  const percent = (value) => `${value * 100}%`;
  return {
    left: percent(left),
    top: percent(top),
    width: percent(right - left),
    height: percent(bottom - top),
  };
}

function Region({ box, index, frame, set, drop }) {
  const dragged = useRef(null);
  const onKey = (event) => {
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      return drop();
    }
    const arrow = ARROWS[event.key];
    if (!arrow) return undefined;
    event.preventDefault();
    const [dx, dy] = arrow.map((step) => step * STEP);
    return set(event.shiftKey ? resized(box, dx, dy) : moved(box, dx, dy));
  };
  const begin = (event) => {
    event.currentTarget.setPointerCapture(event.pointerId);
    dragged.current = { x: event.clientX, y: event.clientY, box, size: event.target.closest(".grip") };
  };
  const drag = (event) => {
    if (!dragged.current) return;
    const { width, height } = frame.current.getBoundingClientRect();
    const [dx, dy] = [(event.clientX - dragged.current.x) / width, (event.clientY - dragged.current.y) / height];
    set((dragged.current.size ? resized : moved)(dragged.current.box, dx, dy));
  };
  const end = () => (dragged.current = null);
  const [left, top, right, bottom] = box.map((side) => Math.round(side * 100));
  const said = `Region ${index + 1}: ${left} to ${right} % across, ${top} to ${bottom} % down. `
    + "Arrow keys move it, with Shift they size it, Delete removes it.";
  return html`
    <div class="region" tabindex="0" role="group" aria-label=${said} style=${styleOf(box)}
      onKeyDown=${onKey} onPointerDown=${begin} onPointerMove=${drag} onPointerUp=${end} onPointerCancel=${end}>
      <span class="number">${index + 1}</span>
      <button type="button" class="drop" tabindex="-1" aria-label="Remove region ${index + 1}"
        onPointerDown=${(event) => event.stopPropagation()} onClick=${drop}>✕</button>
      <span class="grip"></span>
    </div>`;
}
