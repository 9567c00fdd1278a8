// The two answers, side by side.

import { html, names } from "./html.js";
import { meaning, receiptLine } from "./receipt.js";
import { Tokens } from "./tokens.js";

const STATES = { waiting: "waiting for the first token", streaming: "answering", stopped: "stopped" };
const FINISHES = { stop: "ended by itself", length: "cut off by max tokens" };

function progress({ state, tokens, finish }) {
  const count = `${tokens.length} token${tokens.length === 1 ? "" : "s"}`;
  if (state === "waiting") return STATES.waiting;
  if (state === "done") return `${count}, ${FINISHES[finish] ?? finish}`;
  return STATES[state] ? `${count}, ${STATES[state]}` : count;
}

/** The same without a count that changes with every token. */
function spoken(answer) {
  return answer.state === "streaming" ? STATES.streaming : progress(answer);
}

export function Pane({ name, title, answer, marks, at, point, again, children }) {
  return html`
    <section class="pane pane-${name}" aria-labelledby="pane-${name}">
      <header>
        <h2 id="pane-${name}">${title}</h2>
        ${answer && html`
          <span class="progress" aria-hidden="true">${progress(answer)}</span>
          <span class="hidden" role="status">${title}: ${spoken(answer)}</span>`}
      </header>
      ${answer
        ? html`<${Tokens} id=${name} label="The ${name} answer, token by token" tokens=${answer.tokens}
            marks=${marks} at=${at} point=${point} live=${answer.state === "streaming"} />`
        : null}
      ${answer?.error && html`<${Trouble} answer=${answer} again=${again} />`}
      ${answer?.ignored && html`<p class="note">Without effect: <code>${answer.ignored}</code></p>`}
      ${answer?.receipt.length > 0 && html`<${Receipt} entries=${answer.receipt} />`}
      ${children}
    </section>`;
}

/** The focus goes to the field that was wrong. */
function toTheField() {
  document.querySelector("[aria-invalid]")?.focus();
}

function Trouble({ answer, again }) {
  const { error, state, tokens } = answer;
  // The server's trouble, before the answer or within it; not the request's.
  const passing = state === "broken" || error.status >= 500 || error.status < 400;
  return html`
    <div class="trouble" role="alert">
      <p>${error.message} ${error.param && html`
        <button type="button" class="link" onClick=${toTheField}><code>${error.param}</code></button>`}</p>
      ${passing && tokens.length > 0 && html`<p>What came before it is kept above.</p>`}
      ${passing && html`<button type="button" onClick=${again}>Ask again</button>`}
    </div>`;
}

function Receipt({ entries }) {
  return html`
    <div class="receipt">
      <h3>What really ran</h3>
      <ul>
        ${entries.map((entry) => html`
          <li key=${entry.index} class=${names("status", `status-${entry.status}`)}>
            <strong>${entry.method}</strong> ${receiptLine(entry)} ${" "}
            <span class="meaning">(${meaning(entry)})</span>
          </li>`)}
      </ul>
    </div>`;
}
