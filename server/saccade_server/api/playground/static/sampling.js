// How tokens are drawn, and how much of the model's inside comes with them.

import { Field } from "./fields.js";
import { html } from "./html.js";
import { read } from "./schema.js";

const FIELDS = [
  { name: "max_tokens", label: "max tokens", kind: "integer", minimum: 1 },
  { name: "temperature", label: "temperature", kind: "number", minimum: 0, maximum: 2 },
  { name: "seed", label: "seed", kind: "integer" },
];

export const BEGINNING = { max_tokens: "128", temperature: "0" };

/** What was typed, as fields of a body. */
export function samplingOf(typed) {
  const entries = FIELDS.map((field) => [field.name, read(field, typed[field.name])]);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
}

export function Sampling({ typed, change }) {
  return html`
    <div class="three">
      ${FIELDS.map((field) => html`
        <${Field} key=${field.name} field=${field} typed=${typed[field.name]} path=${field.name}
          change=${(value) => change({ ...typed, [field.name]: value })} />`)}
    </div>`;
}
