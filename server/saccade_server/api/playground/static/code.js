// The request of the edited answer as code. No key stands in it: it is read from the environment.

import { useState } from "preact/hooks";
import { address } from "./api.js";
import { html } from "./html.js";

const VARIABLE = "SACCADE_API_KEY";
const MARK = "PICTURE-DATA";

const ENDINGS = { jpeg: "jpg", "svg+xml": "svg" };

/** The picture as a file that the code reads: its name, and the beginning of its data URL. */
function fileOf(picture) {
  const [, kind] = picture.url.match(/^data:image\/([\w.+-]+)/) ?? [null, "png"];
  return { name: `picture.${ENDINGS[kind] ?? kind}`, start: `data:image/${kind};base64,` };
}

function split(body) {
  const { model, messages, ...rest } = body;
  return { model, messages, rest };
}

/** The body with the picture's data replaced by `inner`, as JSON. */
function json(body, picture, inner, indent = 2) {
  const text = JSON.stringify(body, null, indent);
  return picture ? text.replace(JSON.stringify(picture.url), JSON.stringify(fileOf(picture).start + inner)) : text;
}

export function curl(body, picture, keyed) {
  // In a here-document that expands, these characters mean something.
  const escaped = json(body, picture, MARK).replace(/[\\$`]/g, "\\$&");
  const data = picture ? escaped.replace(MARK, `$(base64 < ${fileOf(picture).name} | tr -d '\\n')`) : escaped;
  const lines = [
    `curl -s ${address("v1/chat/completions")}`,
    ...(keyed ? [`-H "Authorization: Bearer $${VARIABLE}"`] : []),
    "-H 'Content-Type: application/json'",
    "--data-binary @- <<JSON",
  ];
  return `${lines.join(" \\\n  ")}\n${data}\nJSON`;
}

/** A value as a Python literal, indented. */
function python(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => `${inner}${python(item, inner)}`)
    : Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${python(item, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const flat = `${open}${items.map((item) => item.trimStart()).join(", ")}${close}`;
  if (!flat.includes("\n") && indent.length + flat.length < 72) return flat;
  return `${open}\n${items.join(",\n")},\n${indent}${close}`;
}

function pythonMessages(messages, picture, indent) {
  const text = python(messages, indent);
  if (!picture) return text;
  const { start } = fileOf(picture);
  return text.replace(JSON.stringify(picture.url), `f"${start}{picture}"`);
}

function pythonPicture(picture) {
  if (!picture) return [];
  return [`picture = b64encode(Path("${fileOf(picture).name}").read_bytes()).decode()`, ""];
}

const keywords = (fields, indent) =>
  Object.entries(fields).map(([name, value]) => `${indent}${name}=${python(value, indent)},`);

export function sdk(body, picture, keyed) {
  const { model, messages, rest } = split(body);
  return [
    ...(picture ? ["from base64 import b64encode", "from pathlib import Path", ""] : []),
    "from saccade_client import Saccade",
    "",
    ...(keyed ? [`# The key is read from the variable ${VARIABLE}.`] : []),
    `client = Saccade(${JSON.stringify(address(".").replace(/\/$/, ""))})`,
    ...pythonPicture(picture),
    "answer = client.chat(",
    `    ${pythonMessages(messages, picture, "    ")},`,
    `    model=${JSON.stringify(model)},`,
    ...keywords(rest, "    "),
    ")",
    "print(answer.text)",
    "for done in answer.interventions_applied:",
    "    print(done.method, done.status)",
  ].join("\n");
}

export function openai(body, picture, keyed) {
  const { model, messages, rest } = split(body);
  const { interventions, trace, ...known } = rest;
  const extra = { ...(interventions && { interventions }), ...(trace && { trace }) };
  const value = keyed ? `os.environ["${VARIABLE}"]` : '"unused"';
  return [
    ...(keyed ? ["import os"] : []),
    ...(picture ? ["from base64 import b64encode", "from pathlib import Path"] : []),
    ...(keyed || picture ? [""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${value})`,
    ...pythonPicture(picture),
    "answer = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=${pythonMessages(messages, picture, "    ")},`,
    ...keywords({ ...known, ...(Object.keys(extra).length && { extra_body: extra }) }, "    "),
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

export function typescript(body, picture, keyed) {
  let text = JSON.stringify(body, null, 2);
  if (picture) text = text.replace(JSON.stringify(picture.url), `\`${fileOf(picture).start}\${picture}\``);
  const headers = [
    '    "Content-Type": "application/json",',
    ...(keyed ? [`    Authorization: \`Bearer \${process.env.${VARIABLE}}\`,`] : []),
  ];
  return [
    ...(picture ? [
      'import { readFile } from "node:fs/promises";',
      "",
      `const picture = await readFile("${fileOf(picture).name}", "base64");`,
    ] : []),
    `const answer = await fetch(${JSON.stringify(address("v1/chat/completions"))}, {`,
    '  method: "POST",',
    "  headers: {",
    ...headers,
    "  },",
    `  body: JSON.stringify(${text.replaceAll("\n", "\n  ")}),`,
    "});",
    "const { choices, interventions_applied } = await answer.json();",
    "console.log(choices[0].message.content, interventions_applied);",
  ].join("\n");
}

const FORMS = {
  curl,
  Python: sdk,
  "Python, openai": openai,
  TypeScript: typescript,
};

export function Code({ body, picture, keyed }) {
  const [form, setForm] = useState("curl");
  const [note, setNote] = useState("");
  const text = FORMS[form](body, picture, keyed);
  const copy = async (what) => {
    try {
      await navigator.clipboard.writeText(what);
      setNote("Copied.");
    } catch {
      setNote("The browser does not let this page copy.");
    }
    setTimeout(() => setNote(""), 3000);
  };
  return html`
    <section class="code" aria-labelledby="code-title">
      <header>
        <h2 id="code-title">This request as code</h2>
        <div class="choices" role="group" aria-label="Language">
          ${Object.keys(FORMS).map((name) => html`
            <button type="button" key=${name} aria-pressed=${name === form}
              onClick=${() => setForm(name)}>${name}</button>`)}
        </div>
      </header>
      <pre tabindex="0" aria-label="The request, for ${form}"><code>${text}</code></pre>
      <div class="code-tools">
        <button type="button" class="quiet" onClick=${() => copy(text)}>Copy</button>
        <button type="button" class="quiet" onClick=${() => copy(JSON.stringify(body))}>
          Copy the body${picture ? ", picture and all" : ""}
        </button>
        <span role="status">${note}</span>
      </div>
      ${picture && html`<p class="hint">The code reads the picture from the file ${fileOf(picture).name}.</p>`}
    </section>`;
}
