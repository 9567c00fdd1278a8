// Form fields made of what schema.js says of them.

import { html, names } from "./html.js";
import { ProblemAt, useProblem } from "./problem.js";
import { howToWrite, written } from "./schema.js";

const FARTHEST = 100;

/** A label, an input, its description and, if it was wrong, why. `typed` undefined: left alone. */
export function Field({ field, typed, change, path, artifacts = [] }) {
  const id = `field-${path.replaceAll(/[^\w]+/g, "-")}`;
  const wrong = useProblem(path) !== null;
  if (field.kind === "object") return html`<${Group} ...${{ field, typed, change, path, artifacts }} />`;
  const described = [field.help && `${id}-help`, wrong && `${id}-wrong`].filter(Boolean).join(" ");
  const common = { id, "aria-describedby": described || undefined, "aria-invalid": wrong || undefined };
  const Input = INPUTS[field.kind] ?? TextInput;
  return html`
    <div class=${names("field", `field-${field.kind}`, wrong && "wrong")}>
      <div class="label-row">
        <label for=${field.kind === "words" ? undefined : id} id="${id}-label">${field.label}</label>
        <span class="hint">${[field.required && "required", howToWrite(field)].filter(Boolean).join(" · ")}</span>
      </div>
      <${Input} ...${{ field, typed, change, common, id, artifacts }} />
      ${field.help && html`<p class="help" id="${id}-help">${field.help}</p>`}
      <${ProblemAt} path=${path} id="${id}-wrong" />
    </div>`;
}

function Group({ field, typed = {}, change, path, artifacts }) {
  return html`
    <fieldset class="group">
      <legend>${field.label}</legend>
      ${field.help && html`<p class="help">${field.help}</p>`}
      ${field.fields.map((inner) => html`
        <${Field} key=${inner.name} field=${inner} typed=${typed[inner.name]} artifacts=${artifacts}
          path="${path}.${inner.name}" change=${(value) => change({ ...typed, [inner.name]: value })} />`)}
    </fieldset>`;
}

function placeholder(field) {
  if (field.required) return "";
  const fallback = written(field, field.fallback);
  return fallback === "" ? "not set" : String(fallback);
}

function TextInput({ field, typed, change, common }) {
  return html`<input type="text" ...${common} value=${typed ?? ""} placeholder=${placeholder(field)}
    autocomplete="off" spellcheck=${false} onInput=${(event) => change(event.target.value)} />`;
}

/** A number to type and, if it has two bounds that are not far apart, to slide. */
function NumberInput({ field, typed, change, common }) {
  const { minimum, maximum, fallback } = field;
  const slides = maximum - minimum <= FARTHEST;
  const now = Number(typed === undefined || typed === "" ? (fallback ?? minimum) : typed);
  return html`
    <div class=${names("number", slides && "slides")}>
      <${TextInput} ...${{ field, typed, change, common: { ...common, inputmode: "decimal" } }} />
      ${slides && html`<input type="range" min=${minimum} max=${maximum} step=${step(field)} value=${now}
        aria-label="${field.label}, by sliding" onInput=${(event) => change(event.target.value)} />`}
    </div>`;
}

/** About a hundredth of the range, as a round number. */
function step({ kind, minimum, maximum }) {
  if (kind === "integer") return 1;
  const power = 10 ** Math.floor(Math.log10((maximum - minimum) / 100));
  return [1, 2, 5].map((round) => round * power).find((size) => size * 100 >= maximum - minimum) ?? 10 * power;
}

function Lines({ field, typed, change, common }) {
  return html`<textarea ...${common} rows="2" value=${typed ?? ""} placeholder=${placeholder(field)}
    spellcheck=${false} onInput=${(event) => change(event.target.value)}></textarea>`;
}

function Choice({ field, typed, change, common }) {
  const unset = field.fallback === null || field.fallback === undefined;
  return html`
    <select ...${common} value=${typed ?? field.fallback ?? ""} onChange=${(event) => change(event.target.value)}>
      ${unset && html`<option value="">${field.required ? "choose" : "not set"}</option>`}
      ${field.options.map((option) => html`
        <option key=${option} value=${option}>
          ${option}${option === field.fallback ? " (default)" : ""}
        </option>`)}
    </select>`;
}

function Switch({ field, typed, change, common }) {
  return html`<input type="checkbox" role="switch" ...${common} checked=${typed ?? field.fallback ?? false}
    onChange=${(event) => change(event.target.checked)} />`;
}

function Words({ field, typed, change, id }) {
  const chosen = (typed ?? field.fallback ?? "").split("+").filter(Boolean);
  const toggle = (option) => {
    const on = chosen.includes(option) ? chosen.filter((word) => word !== option) : [...chosen, option];
    change(field.options.filter((word) => on.includes(word)).join("+"));
  };
  return html`
    <div class="words" role="group" aria-labelledby="${id}-label">
      ${field.options.map((option) => html`
        <label key=${option}>
          <input type="checkbox" checked=${chosen.includes(option)} onChange=${() => toggle(option)} />
          ${option}
        </label>`)}
    </div>`;
}

function Artifact({ typed, change, common, id, artifacts }) {
  return html`
    <input type="text" ...${common} list="${id}-list" value=${typed ?? ""} placeholder="sha256:…"
      autocomplete="off" spellcheck=${false} onInput=${(event) => change(event.target.value)} />
    <datalist id="${id}-list">
      ${artifacts.map((artifact) => html`
        <option key=${artifact.id} value=${artifact.id}>${artifact.kind} ${artifact.notes}</option>`)}
    </datalist>`;
}

const INPUTS = {
  number: NumberInput,
  integer: NumberInput,
  choice: Choice,
  switch: Switch,
  words: Words,
  artifact: Artifact,
  texts: Lines,
  json: Lines,
};
