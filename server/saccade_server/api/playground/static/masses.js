// How a token's attention is shared between classes of the prompt, layer by layer.

import { html } from "./html.js";
import { rowOf } from "./heat.js";

const HEIGHT = 96;
const WIDTH = 240;

/** {layers, classes, shares[layer][class]} of one token, or null. */
export function massesOf(answer, token) {
  const array = answer.arrays.masses;
  const row = rowOf(answer, token, "masses");
  if (!array || row === null) return null;
  const { layer: layers, class: classes } = answer.trace.arrays.masses.coordinates;
  const shares = array.at({ row });
  return {
    layers,
    classes,
    shares: layers.map((_, k) => Array.from(shares.at({ layer: k }).data)),
  };
}

const percent = (share) => `${Math.round(share * 100)} %`;

/** Stacked columns, one a layer; the numbers as a table for who cannot see them. */
export function Masses({ masses, title }) {
  const { layers, classes, shares } = masses;
  const step = WIDTH / layers.length;
  const gap = Math.min(2, step * 0.15);
  return html`
    <figure class="masses">
      <figcaption>${title}</figcaption>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
        ${shares.map((column, k) => {
          let top = HEIGHT;
          return column.map((share, which) => {
            const tall = (share || 0) * HEIGHT;
            top -= tall;
            return html`<rect key="${k}-${which}" class="class-${classes[which]}" x=${k * step + gap / 2} y=${top}
              width=${step - gap} height=${tall} />`;
          });
        })}
      </svg>
      <div class="axis" aria-hidden="true"><span>layer ${layers[0]}</span><span>${layers.at(-1)}</span></div>
      <div class="hidden"><table>
        <thead><tr><th>layer</th>${classes.map((name) => html`<th key=${name}>${name}</th>`)}</tr></thead>
        <tbody>
          ${layers.map((layer, k) => html`
            <tr key=${layer}><th>${layer}</th>${shares[k].map((share, which) => html`
              <td key=${which}>${percent(share)}</td>`)}</tr>`)}
        </tbody>
      </table></div>
    </figure>`;
}

export function Legend({ classes }) {
  return html`
    <ul class="legend" aria-hidden="true">
      ${classes.map((name) => html`<li key=${name}><i class="class-${name}"></i>${name}</li>`)}
    </ul>`;
}
