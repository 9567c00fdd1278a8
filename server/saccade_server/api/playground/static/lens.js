// What the model would have said from the residual that enters each layer, and from the last: the
// logit lens.

import { html } from "./html.js";
import { rowOf } from "./heat.js";

/** [{layer, token, probability}] of one token, or null. */
export function lensOf(answer, token) {
  const tokens = answer.arrays["logit_lens.tokens"];
  const row = rowOf(answer, token, "logit_lens.tokens");
  if (!tokens || row === null) return null;
  const first = (array) => array.at({ row, rank: 0 }).data;
  const [ids, logprobs] = [first(tokens), first(answer.arrays["logit_lens.logprobs"])];
  return answer.trace.arrays["logit_lens.tokens"].coordinates.layer.map((layer, k) => ({
    layer,
    token: answer.trace.token_texts?.[ids[k]] ?? `#${ids[k]}`,
    probability: Math.exp(logprobs[k]),
  }));
}

export function Lens({ guesses, title }) {
  return html`
    <div class="lens">
      <h4>${title}</h4>
      <ol>
        ${guesses.map(({ layer, token, probability }) => html`
          <li key=${layer}><span class="layer">${layer}</span> <code>${token}</code>
            <span class="probability">${Math.round(probability * 100)} %</span></li>`)}
      </ol>
    </div>`;
}
