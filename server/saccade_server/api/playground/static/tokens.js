// An answer as tokens to point at: with the mouse, a finger, or the arrow keys.

import { html, names } from "./html.js";

/** Where each token begins and ends in the text that the tokens make. */
export function places(tokens) {
  let at = 0;
  return tokens.map(({ text }) => ({ start: at, end: (at += text.length) }));
}

/** The token that a place in the text lies in; the nearest, if it lies behind the last. */
export function tokenAt(tokens, position) {
  const found = places(tokens).findIndex(({ start, end }) => start <= position && position < end);
  return found < 0 ? tokens.length - 1 : found;
}

/** A token's text in pieces, the marked ones told apart. */
function pieces({ start, end }, text, marks) {
  const cuts = new Set([start, end]);
  for (const edge of marks.flat()) if (start < edge && edge < end) cuts.add(edge);
  const sorted = [...cuts].sort((x, y) => x - y);
  return sorted.slice(0, -1).map((from, k) => ({
    text: text.slice(from - start, sorted[k + 1] - start),
    marked: marks.some(([a, b]) => a <= from && from < b),
  }));
}

/** The space before a word, then the word, which is what is lit when it is pointed at. */
function shown(place, text, marks) {
  const space = text.trim() ? text.length - text.trimStart().length : 0;
  const inner = pieces({ ...place, start: place.start + space }, text.slice(space), marks);
  const word = inner.map((piece) => (piece.marked ? html`<mark>${piece.text}</mark>` : piece.text));
  return html`${text.slice(0, space)}<span>${word}</span>`;
}

/**
 * `marks`: stretches of characters that the other answer has not. `at`: the token in view.
 * `point(index, pinned)` is told where the reader points.
 */
export function Tokens({ id, label, tokens, marks, at, point, live }) {
  const spans = places(tokens);
  const onKey = (event) => {
    const last = tokens.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    point(Math.min(last, Math.max(0, at < 0 ? 0 : to)), true);
  };
  const indexOf = (event) => {
    const token = event.target.closest("[data-index]");
    return token ? Number(token.dataset.index) : null;
  };
  return html`
    <div class=${names("tokens", live && "live")} role="listbox" tabindex="0" aria-label=${label}
      aria-orientation="horizontal" aria-activedescendant=${at >= 0 ? `${id}-${at}` : undefined}
      onKeyDown=${onKey} onFocus=${() => at < 0 && tokens.length && point(0, true)}
      onPointerOver=${(event) => event.pointerType === "mouse" && point(indexOf(event), false)}
      onPointerLeave=${() => point(null, false)}
      onClick=${(event) => indexOf(event) !== null && point(indexOf(event), true)}>
      ${tokens.map((token, index) => html`
        <span key=${index} id="${id}-${index}" data-index=${index} role="option" aria-selected=${index === at}
          class=${names("token", index === at && "at", token.text === "" && "silent", token.thinks && "thought")}>${
          token.text === "" ? html`<span title=${token.token}>◦</span>` : shown(spans[index], token.text, marks)
        }</span>`)}
    </div>`;
}
