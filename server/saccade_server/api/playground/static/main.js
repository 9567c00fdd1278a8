// The playground: a request on one side, its plain and its edited answer on the other.

import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ENDED } from "./answer.js";
import { useAnswers } from "./answers.js";
import { key } from "./api.js";
import { chatBody } from "./body.js";
import { looking, useMethods } from "./chosen.js";
import { Code } from "./code.js";
import { compareSoFar } from "./diff.js";
import { Door, Header } from "./header.js";
import { html, names } from "./html.js";
import * as inside from "./inside.js";
import { Inspector } from "./inspector.js";
import { LOOK_AT, MIDDLE, boxesOf } from "./look.js";
import { Methods } from "./methods.js";
import { Pane } from "./panes.js";
import { PictureInput, sample } from "./picture.js";
import { Problem, ProblemAt } from "./problem.js";
import { BEGINNING, Sampling, samplingOf } from "./sampling.js";
import { entryOf, fieldsOf } from "./schema.js";
import { places, tokenAt } from "./tokens.js";
import { useServer } from "./server.js";

function Page() {
  const server = useServer();
  const [model, setModel] = useState(null);
  useEffect(() => {
    if (server.state === "open") setModel((old) => old ?? server.models[0].id);
  }, [server.state]);
  const card = server.models?.find(({ id }) => id === model);
  return html`
    <${Header} ...${{ server, model, setModel }} />
    ${server.state === "open" && card
      ? html`<${Desk} key=${server.models[0].id} ...${{ server, card }} />`
      : html`<${Door} server=${server} />`}`;
}

function Desk({ server, card }) {
  const [picture, setPicture] = useState(null);
  const [question, setQuestion] = useState("Describe the image.");
  const [methods, setMethods] = useMethods();
  const [typed, setTyped] = useState(BEGINNING);
  const [wanted, setWanted] = useState(() => inside.beginning(card));
  const { answers, running, start, stop } = useAnswers();
  const images = card.accepts_images;
  useEffect(() => {
    if (images) sample().then(setPicture, () => {});
    else setQuestion("");
  }, []);

  const shown = images ? picture : null;
  const boxes = shown ? boxesOf(methods, shown) : [];
  const offered = server.methods.some(({ id, supported }) => id === LOOK_AT && supported);
  const look = shown && offered ? looking(methods, setMethods, shown) : null;
  const add = (name) =>
    name === LOOK_AT && look ? look.add(MIDDLE, { apart: true }) : setMethods.add(name);
  const entries = methods.map(({ about, typed: set }) => entryOf(about.id, fieldsOf(about.schema), set));
  const profile = server.profiles.find(({ model }) => model === card.id);
  const request = {
    model: card.id,
    picture: shown,
    question,
    sampling: samplingOf(typed),
    trace: inside.traceOf(wanted, shown, card),
  };
  const bodies = {
    plain: chatBody(request, []),
    edited: entries.length ? chatBody(request, entries) : profile ? chatBody(request) : null,
  };
  const problem = [answers.edited, answers.plain].find((answer) => answer?.state === "refused")?.error;
  // One button: were it replaced while it is clicked, the click would ask again.
  const halt = (event) => {
    if (!running) return;
    event.preventDefault();
    stop();
  };
  const submit = (event) => {
    event?.preventDefault();
    start(bodies);
  };

  return html`
    <${Problem.Provider} value=${problem}>
      <main class="desk">
        <form class="request" aria-label="The request" onSubmit=${submit}>
          ${images && html`
            <section class="for-picture">
              <h2>Picture</h2>
              <${PictureInput} picture=${picture} choose=${setPicture} boxes=${boxes} look=${look} />
            </section>`}
          <section>
            <h2><label for="question">Question</label></h2>
            <textarea id="question" rows="2" value=${question}
              onInput=${(event) => setQuestion(event.target.value)}
              onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}>
            </textarea>
          </section>
          <section class="methods">
            <h2>Methods</h2>
            ${profile && html`<${ProfileNote} profile=${profile} replaced=${entries.length > 0} />`}
            <${Methods} server=${server} chosen=${methods} ...${setMethods} add=${add} />
          </section>
          <section>
            <h2>Sampling</h2>
            <${Sampling} typed=${typed} change=${setTyped} />
          </section>
          <section>
            <h2>Look inside</h2>
            <${inside.Inside} wanted=${wanted} change=${setWanted} picture=${shown} />
          </section>
          <div class="go">
            <${ProblemAt} path="model" />
            <button type="submit" class="primary" onClick=${halt}>${running ? "Stop" : "Ask"}</button>
          </div>
        </form>
        <${Results} ...${{ answers, bodies, picture: shown, boxes, again: submit }} />
      </main>
    <//>`;
}

function ProfileNote({ profile, replaced }) {
  const names = profile.interventions.map(({ method }) => method).join(", ");
  return html`
    <p class="note">${replaced
      ? "These take the place of the profile's own methods."
      : `The profile ${profile.id} runs ${names}. ${profile.description}`}</p>`;
}

const textOf = (answer) => (answer?.tokens ?? []).map(({ text }) => text).join("");

function Results({ answers, bodies, picture, boxes, again }) {
  const { plain, edited } = answers;
  const [pinned, pin] = useState(null);
  const [over, hover] = useState(null);
  const panes = useRef(null);
  const begun = plain !== null;
  useEffect(() => {
    if (begun) panes.current.scrollIntoView({ block: "nearest" });
  }, [begun]);
  const whole = [plain, edited].every((answer) => !answer || ENDED.includes(answer.state));
  const texts = [textOf(plain), textOf(edited)];
  const both = texts[0] !== "" && texts[1] !== "";
  const differ = useMemo(() => (both ? compareSoFar(...texts, whole) : null), [...texts, whole]);
  const at = valid(over, answers) ?? valid(pinned, answers);
  const sides = sidesOf(at, answers, differ);
  const tokenOf = (name) => sides.find((side) => side.name === name)?.token ?? -1;
  const point = (name) => (index, stays) => {
    const place = index === null ? null : { name, index };
    if (stays) pin(place);
    hover(stays ? null : place);
  };
  const pane = (name, title, marks) => ({
    name,
    title,
    answer: answers[name],
    marks: marks ?? [],
    at: at?.name === name ? at.index : tokenOf(name),
    point: point(name),
    again,
  });
  return html`
    <div class="results">
      <div class=${names("panes", bodies.edited && "two")} ref=${panes}>
        <${Pane} ...${pane("plain", "Plain", differ?.first)}>
          ${!plain && html`<p class="note">What the model says by itself.</p>`}
        <//>
        ${(bodies.edited || edited) && html`
          <${Pane} ...${pane("edited", "Edited", differ?.second)}>
            ${!edited && html`<p class="note">What it says under the methods.</p>`}
            ${edited?.state === "done" && whole && texts[0] === texts[1] && html`
              <p class="note">The same words.</p>`}
          <//>`}
      </div>
      ${!bodies.edited && html`
        <p class="note invitation">Add a method${picture ? ", or draw a region on the picture," : ""} to see
          ${" "}beside it what changes.</p>`}
      <${Inspector} ...${{ sides, picture, boxes }} />
      <${Code} body=${bodies.edited ?? bodies.plain} picture=${picture} keyed=${key.get() !== null} />
    </div>`;
}

const valid = (at, answers) => (at && at.index < (answers[at.name]?.tokens.length ?? 0) ? at : null);

/** The token in view and the one that stands for it in the other answer. */
function sidesOf(at, answers, differ) {
  if (!at) return [];
  return ["plain", "edited"].flatMap((name) => {
    const answer = answers[name];
    if (!answer?.tokens.length) return [];
    if (name === at.name) return [{ name, answer, token: at.index }];
    if (!differ) return [];
    const { start } = places(answers[at.name].tokens)[at.index];
    const across = name === "plain" ? differ.across : differ.back;
    return [{ name, answer, token: tokenAt(answer.tokens, across(start)) }];
  });
}

render(html`<${Page} />`, document.getElementById("page"));
