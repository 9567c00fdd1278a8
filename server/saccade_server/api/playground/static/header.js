// The top of the page: the model, the key, and light or dark.

import { useState } from "preact/hooks";
import { key } from "./api.js";
import { html } from "./html.js";

export function Header({ server, model, setModel }) {
  return html`
    <header class="top">
      <h1>Playground</h1>
      ${server.state === "open" && html`
        <label class="model">
          <span>Model</span>
          <select id="field-model" value=${model} onChange=${(event) => setModel(event.target.value)}>
            ${server.models.map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
          </select>
        </label>
        ${key.get() && html`
          <button type="button" class="quiet" onClick=${server.forget}>Forget the key</button>`}`}
      <${Theme} />
    </header>`;
}

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "");
  const choose = (name) => {
    setTheme(name);
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    try {
      if (name) localStorage.setItem("theme", name);
      else localStorage.removeItem("theme");
    } catch {
      // It holds for this page then.
    }
  };
  return html`
    <label class="theme">
      <span class="hidden">Theme</span>
      <select value=${theme} onChange=${(event) => choose(event.target.value)}>
        ${Object.entries(THEMES).map(([name, title]) => html`
          <option key=${name} value=${name}>${title}</option>`)}
      </select>
    </label>`;
}

/** What is shown until the server is open: its wish for a key, or that it does not answer. */
export function Door({ server }) {
  const [typed, setTyped] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (typed.trim()) server.open(typed.trim());
    setTyped("");
  };
  if (server.state === "asking") return html`<main class="door"><p role="status">Asking the server…</p></main>`;
  if (server.state === "away") {
    return html`
      <main class="door">
        <p role="alert">${server.note}</p>
        <button type="button" onClick=${server.again}>Try again</button>
      </main>`;
  }
  return html`
    <main class="door">
      <form onSubmit=${submit}>
        <p role="alert">${server.note}</p>
        <label for="key">Key</label>
        <input id="key" type="password" autocomplete="off" spellcheck=${false} value=${typed}
          onInput=${(event) => setTyped(event.target.value)} />
        <button type="submit" class="primary">Use in this tab</button>
        <p class="help">It is kept for this tab alone, and sent to this server alone.</p>
      </form>
    </main>`;
}
