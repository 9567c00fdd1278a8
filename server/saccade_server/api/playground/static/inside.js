// Which traces a request asks for: heat maps, masses, and the guesses of layers.

import { html } from "./html.js";
import { ProblemAt } from "./problem.js";

// Maps of every layer are many bytes; models with more layers send their mean.
const FEW_LAYERS = 12;

export const MAPS = { layers: "of each layer", mean: "mean of layers", none: "none" };

export function beginning(model) {
  return { maps: model.layers > FEW_LAYERS ? "mean" : "layers", masses: true, lens: false };
}

/** The `trace` of a body, or undefined. `model`: its card. */
export function traceOf({ maps, masses, lens }, picture, model) {
  const heatmaps = {
    sinks: model.knows_sinks ? "mark" : "keep",
    reduce: maps === "mean" ? ["head", "layer"] : ["head"],
  };
  const kinds = {
    ...(picture && maps !== "none" && { heatmaps }),
    ...(masses && { masses: true }),
    ...(lens && { logit_lens: { top: 1 } }),
  };
  if (!Object.keys(kinds).length) return undefined;
  return { ...kinds, encoding: "base64", delivery: "inline" };
}

export function Inside({ wanted, change, picture }) {
  const check = (name, label) => html`
    <label class="check">
      <input type="checkbox" checked=${wanted[name]}
        onChange=${(event) => change({ ...wanted, [name]: event.target.checked })} /> ${label}
    </label>`;
  return html`
    <div class="inside">
      ${picture && html`
        <label class="maps">Heat maps
          <select value=${wanted.maps} onChange=${(event) => change({ ...wanted, maps: event.target.value })}>
            ${Object.entries(MAPS).map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}
          </select>
        </label>`}
      ${check("masses", "attention masses by layer")}
      ${check("lens", "what each layer would have said")}
      <${ProblemAt} path="trace" />
    </div>`;
}
