// Boxes on the picture: drawn with a pointer, or set and moved with the keyboard.

import { useRef, useState } from "preact/hooks";
import { html, names } from "./html.js";
import { MIDDLE } from "./look.js";

const SMALL = 200; // pixels
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
 * The picture with its boxes, {id, place, box, away}. `look` changes them: `add(box)`,
 * `set(id, place, box)`, `drop(id, place)`, `turn(away)`; null: the picture alone.
 */
export function Regions({ picture, boxes, look }) {
  const frame = useRef(null);
  const [drawing, setDrawing] = useState(null);

  const place = (event) => {
    const { left, top, width, height } = frame.current.getBoundingClientRect();
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  };
  const begin = (event) => {
    // A finger scrolls past the picture; it drags the region that the button adds.
    if (!look || event.button !== 0 || event.pointerType === "touch" || event.target.closest(".region")) return;
    event.preventDefault();
    frame.current.setPointerCapture(event.pointerId);
    setDrawing({ from: place(event), to: place(event) });
  };
  const draw = (event) => drawing && setDrawing({ ...drawing, to: place(event) });
  const finish = () => {
    if (!drawing) return;
    const box = between(drawing.from, drawing.to);
    if (large(box)) look.add(box);
    setDrawing(null);
  };
  const add = async () => {
    await look.add(MIDDLE);
    setTimeout(() => [...frame.current.querySelectorAll(".region")].at(-1)?.focus());
  };

  return html`
    <div class=${names("frame", look && "drawable")} ref=${frame} style=${widthOf(picture)} onPointerDown=${begin}
      onPointerMove=${draw} onPointerUp=${finish} onPointerCancel=${() => setDrawing(null)}>
      <img src=${picture.url} alt="The picture: ${picture.name}" class=${names(isSmall(picture) && "small")}
        width=${picture.width} height=${picture.height} draggable=${false} />
      ${boxes.map(({ id, place: at, box, away }, index) => html`
        <${Region} key="${id}-${at}" ...${{ box, index, away, frame }}
          set=${(next) => look.set(id, at, next)} drop=${() => look.drop(id, at)} />`)}
      ${drawing && html`<div class="region drawing" style=${styleOf(between(drawing.from, drawing.to))}></div>`}
    </div>
    ${look && html`
      <div class="region-tools">
        <button type="button" class="quiet" onClick=${add}>Add a region</button>
        ${boxes.length ? html`<${Direction} away=${boxes.at(-1).away} turn=${look.turn} />`
          : html`<span class="hint">or draw one on the picture</span>`}
      </div>`}`;
}

function Direction({ away, turn }) {
  return html`
    <div class="choices" role="group" aria-label="The model is to look">
      <button type="button" aria-pressed=${!away} onClick=${() => turn(false)}>Look there</button>
      <button type="button" aria-pressed=${away} onClick=${() => turn(true)}>Look away</button>
    </div>`;
}

/** Whether a picture is shown with its pixels sharp. */
export const isSmall = ({ width }) => width < SMALL;

/** As wide as there is room for, and not too tall. */
function widthOf({ width, height }) {
  return { width: `${(TALLEST * width) / height}rem` };
}

/** A box of fractions as a place in percent. */
export function styleOf([left, top, right, bottom]) {
  const percent = (value) => `${value * 100}%`;
  return {
    left: percent(left),
    top: percent(top),
    width: percent(right - left),
    height: percent(bottom - top),
  };
}

function Region({ box, index, away, frame, set, drop }) {
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
  const said = `Region ${index + 1} to look ${away ? "away from" : "at"}: ${left} to ${right} % across, ${top} to ${bottom} % down. `
    + "Arrow keys move it, with Shift they size it, Delete removes it.";
  return html`
    <div class=${names("region", away && "away")} tabindex="0" role="group" aria-label=${said} style=${styleOf(box)}
      onKeyDown=${onKey} onPointerDown=${begin} onPointerMove=${drag} onPointerUp=${end} onPointerCancel=${end}>
      <span class="number">${index + 1}${away ? " away" : ""}</span>
      <button type="button" class="drop" tabindex="-1" aria-label="Remove region ${index + 1}"
        onPointerDown=${(event) => event.stopPropagation()} onClick=${drop}>✕</button>
      <span class="grip"></span>
    </div>`;
}
