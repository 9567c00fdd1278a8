// What there is to see of one token, in the plain answer and in the edited one.

import { useState } from "preact/hooks";
import { HeatMap, highest, inside, knowsSinks, layersOf, mapsOf, total, whereabouts } from "./heat.js";
import { html } from "./html.js";
import { Lens, lensOf } from "./lens.js";
import { Legend, Masses, massesOf } from "./masses.js";

const visible = (text) => text.replaceAll("\n", "⏎").replace(/^ | $/g, "·") || "∅";

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share > 0 && share < 0.1) return "< 0.1\u00a0%";
  return `${share.toFixed(share < 10 ? 1 : 0)}\u00a0%`;
}

const share = (part) => `${(part * 100).toFixed(1)}\u00a0%`;

/** `sides`: [{name, answer, token}] with the token's place, for each answer that has one. */
export function Inspector({ sides, picture, boxes }) {
  const [view, setView] = useState({ layer: null, sinks: false });
  if (!sides.length) {
    return html`
      <section class="inspector empty" aria-label="One token">
        <p>Point at a word of an answer, or step through it with the arrow keys: what else could have
          stood there, where it looked, and what it attended to.</p>
      </section>`;
  }
  return html`
    <section class="inspector" aria-label="One token">
      <${Alternatives} sides=${sides} />
      ${picture && html`<${Maps} ...${{ sides, picture, boxes, view, setView }} />`}
      <${Shares} sides=${sides} />
      <${Guesses} sides=${sides} />
    </section>`;
}

function Alternatives({ sides }) {
  return html`
    <div class="part">
      <h3>What could have stood here</h3>
      <div class="sides">${sides.map(({ name, answer, token }) => html`
        <div key=${name} class="side side-${name}">
          <h4>${name}: <code>${visible(answer.tokens[token].text || answer.tokens[token].token)}</code></h4>
          <ol class="alternatives">
            ${options(answer.tokens[token]).map((option) => html`
              <li key=${option.token} class=${option.chosen ? "chosen" : ""}>
                <code>${visible(option.token)}</code>
                <meter min="0" max="1" value=${Math.exp(option.logprob)} aria-hidden="true"></meter>
                <span class="probability">${percent(option.logprob)}</span>
              </li>`)}
          </ol>
        </div>`)}
      </div>
    </div>`;
}

/** The likeliest tokens, and the one that was drawn if it is none of them. */
function options({ token, logprob, alternatives }) {
  const listed = alternatives.filter((option) => option.logprob > -1000);
  const all = listed.some((option) => option.token === token) ? listed : [...listed, { token, logprob }];
  return all.map((option) => ({ ...option, chosen: option.token === token }));
}

function Maps({ sides, picture, boxes, view, setView }) {
  const drawn = sides.map((side) => ({ ...side, maps: mapsOf(side.answer, side.token, view) }));
  const some = drawn.filter(({ maps }) => maps.length);
  if (!some.length) return null;
  const layers = layersOf(some[0].answer);
  const most = Math.max(...some.map(({ maps }) => highest(maps)));
  return html`
    <div class="part">
      <h3>Where it looked</h3>
      <div class="controls">
        ${layers.length > 1 && html`
          <label>Layer
            <input type="range" min="-1" max=${layers.length - 1} value=${view.layer ?? -1}
              aria-valuetext=${view.layer === null ? "mean of all" : layers[view.layer]}
              onInput=${({ target }) => setView({ ...view, layer: target.value < 0 ? null : Number(target.value) })} />
            <output>${view.layer === null ? "all" : layers[view.layer]}</output>
          </label>`}
        ${knowsSinks(some[0].answer) && html`
          <label><input type="checkbox" checked=${view.sinks}
            onChange=${({ target }) => setView({ ...view, sinks: target.checked })} /> with sinks</label>`}
      </div>
      <div class="sides close">${some.map(({ name, maps }) => html`
        <figure key=${name} class="side side-${name}">
          <${HeatMap} ...${{ picture, maps, most }} boxes=${name === "edited" ? boxes : []}
            label="Attention of the ${name} answer's token, most at the ${whereabouts(maps)}" />
          <figcaption>${name}: ${share(total(maps))} of its attention, most at the ${whereabouts(maps)}${
            boxes.length > 0 && html`; <b>${share(inside(maps, boxes))} in the region${boxes.length > 1 && "s"}</b>`
          }</figcaption>
        </figure>`)}
      </div>
    </div>`;
}

function Shares({ sides }) {
  const found = sides
    .map(({ name, answer, token }) => ({ name, masses: massesOf(answer, token) }))
    .filter(({ masses }) => masses);
  if (!found.length) return null;
  return html`
    <div class="part">
      <h3>What it attended to, by layer</h3>
      <div class="sides close">${found.map(({ name, masses }) => html`
        <div key=${name} class="side side-${name}"><${Masses} masses=${masses} title=${name} /></div>`)}
      </div>
      <${Legend} classes=${found[0].masses.classes} />
    </div>`;
}

function Guesses({ sides }) {
  const found = sides
    .map(({ name, answer, token }) => ({ name, guesses: lensOf(answer, token) }))
    .filter(({ guesses }) => guesses);
  if (!found.length) return null;
  return html`
    <div class="part">
      <h3>What each layer would have said</h3>
      <div class="sides">${found.map(({ name, guesses }) => html`
        <div key=${name} class="side side-${name}"><${Lens} guesses=${guesses} title=${name} /></div>`)}
      </div>
    </div>`;
}
