// The list of methods that the edited answer runs under: add, set, order, remove.

import { useEffect, useRef, useState } from "preact/hooks";
import { Field } from "./fields.js";
import { html } from "./html.js";
import { ProblemAt, lies, useProblem } from "./problem.js";
import { fieldsOf, written } from "./schema.js";

const NO_ARTIFACT = /^sha256:0+$/;

/** What a new form of a method begins with: what is required, as in its example. */
export function beginning(method, everything = false) {
  const typed = {};
  for (const field of fieldsOf(method.schema)) {
    const value = method.example[field.name];
    if (value === undefined || NO_ARTIFACT.test(value)) continue;
    if (field.required || everything) typed[field.name] = written(field, value);
  }
  return typed;
}

export function Methods({ server, chosen, add, change, move, remove }) {
  const list = useRef(null);
  const focusOn = (index) => {
    const cards = list.current?.querySelectorAll(".method h3");
    (cards?.[Math.min(index, cards.length - 1)] ?? list.current?.querySelector(".adder button"))?.focus();
  };
  const after = (act, index) => {
    act();
    setTimeout(() => focusOn(index));
  };
  return html`
    <div ref=${list}>
      ${chosen.map((item, index) => html`
        <${Method} key=${item.id} ...${{ item, index, count: chosen.length, artifacts: server.artifacts }}
          change=${(typed) => change(item.id, typed)}
          up=${() => after(() => move(index, -1), index - 1)}
          down=${() => after(() => move(index, 1), index + 1)}
          remove=${() => after(() => remove(item.id), index)} />`)}
      <${Adder} methods=${server.methods} add=${add} focusOnLast=${() => setTimeout(() => focusOn(chosen.length))} />
      <${ProblemAt} path="interventions" below=${chosen.map((_, index) => `interventions[${index}]`)} />
    </div>`;
}

/** A list to choose from, with what each method does; closed until it is wanted. */
function Adder({ methods, add, focusOnLast }) {
  const [open, setOpen] = useState(false);
  const [sought, setSought] = useState("");
  const find = useRef(null);
  const summary = useRef(null);
  useEffect(() => {
    if (open) find.current.focus();
  }, [open]);
  const close = () => {
    setOpen(false);
    setSought("");
    summary.current.focus();
  };
  const wanted = methods.filter(({ id, title, summary: says }) =>
    `${id} ${title} ${says}`.toLowerCase().includes(sought.trim().toLowerCase()));
  const choose = async (method) => {
    close();
    await add(method.id);
    focusOnLast();
  };
  const onKey = (event) => {
    if (event.key === "Escape") close();
    if (event.key !== "Enter" || event.target !== find.current) return;
    event.preventDefault();
    const first = wanted.find((method) => method.supported);
    if (first) choose(first);
  };
  return html`
    <div class="adder" onKeyDown=${onKey}>
      <button type="button" class="wide" aria-expanded=${open} ref=${summary} onClick=${() => (open ? close() : setOpen(true))}>
        ${open ? "Close the list" : "Add a method"}
      </button>
      ${open && html`
        <input type="text" ref=${find} value=${sought} placeholder="Find: image, heads, steering …" aria-label="Find a method"
          autocomplete="off" spellcheck=${false} onInput=${(event) => setSought(event.target.value)} />
        <ul>
          ${wanted.map((method) => html`
            <li key=${method.id}>
              <button type="button" disabled=${!method.supported} onClick=${() => choose(method)}>
                <span><b>${method.id}</b> ${method.title}</span>
                <small>${method.supported ? method.summary : method.reason}</small>
              </button>
            </li>`)}
          ${!wanted.length && html`<li class="hint">No method is like that.</li>`}
        </ul>`}
    </div>`;
}

function Method({ item, index, count, artifacts, change, up, down, remove }) {
  const { about, typed } = item;
  const heading = useRef(null);
  const [main, rest] = split(fieldsOf(about.schema), about);
  const path = `interventions[${index}]`;
  const show = (field) => html`
    <${Field} key=${field.name} field=${field} typed=${typed[field.name]} artifacts=${artifacts}
      path="${path}.${field.name}"
      change=${(value) => change({ ...typed, [field.name]: value })} />`;
  return html`
    <section class="method" aria-labelledby="method-${item.id}">
      <header>
        <h3 id="method-${item.id}" tabindex="-1" ref=${heading}>${about.id}</h3>
        <span class="title">${about.title}</span>
        <span class="tools">
          <button type="button" class="icon" onClick=${up} disabled=${index === 0}
            aria-label="Move ${about.id} up">↑</button>
          <button type="button" class="icon" onClick=${down} disabled=${index === count - 1}
            aria-label="Move ${about.id} down">↓</button>
          <button type="button" class="icon" onClick=${remove} aria-label="Remove ${about.id}">✕</button>
        </span>
      </header>
      <p class="summary">${about.summary} <span class="paper">${about.paper}</span></p>
      ${main.map(show)}
      <${More} fields=${rest} show=${show} path=${path} />
      <${ProblemAt} path=${path} below=${[...main, ...rest].map(({ name }) => `${path}.${name}`)} />
      <button type="button" class="link" onClick=${() => change(beginning(about, true))}>
        Fill in the example
      </button>
    </section>`;
}

/** What is required, and what the example or the neutral setting names; then the rest. */
function split(fields, about) {
  const named = new Set([...Object.keys(about.example), ...Object.keys(about.neutral ?? {})]);
  const main = fields.filter((field) => field.required || named.has(field.name));
  return [main, fields.filter((field) => !main.includes(field))];
}

function More({ fields, show, path }) {
  const [open, setOpen] = useState(false);
  const wrong = useProblem(path);
  const within = wrong && fields.some(({ name }) => lies(wrong.param, `${path}.${name}`));
  useEffect(() => {
    if (within) setOpen(true);
  }, [within]);
  if (!fields.length) return null;
  return html`
    <details open=${open} onToggle=${(event) => setOpen(event.target.open)}>
      <summary>More settings (${fields.length})</summary>
      ${open && fields.map(show)}
    </details>`;
}
