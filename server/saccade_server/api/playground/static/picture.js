// The picture that is asked about: a file, pasted, dropped, or one of those that come with the page.

import { useEffect, useRef, useState } from "preact/hooks";
import { html, names } from "./html.js";
import { ProblemAt } from "./problem.js";
import { Regions } from "./regions.js";

const SAMPLES = [
  { name: "absent-1", alt: "red circle, blue cross, blue diamond" },
  { name: "clear-2", alt: "red circle, blue square, green cross" },
  { name: "clear-3", alt: "six shapes" },
  { name: "weak-1", alt: "faint shapes" },
];

const sampleAt = (name) => `playground/samples/${name}.png`;

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A picture as it is sent, {url, name, width, height}; an error if the browser cannot show it. */
async function pictureOf(blob, name) {
  const url = await dataUrl(blob);
  const image = new Image();
  image.src = url;
  await image.decode();
  return { url, name, width: image.naturalWidth, height: image.naturalHeight };
}

export async function sample(name = SAMPLES[0].name) {
  const answer = await fetch(sampleAt(name));
  return pictureOf(await answer.blob(), `${name}.png`);
}

const firstImage = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/"));

/** Shows the picture with its regions, and takes another one in every way that there is. */
export function PictureInput({ picture, choose, boxes, look }) {
  const [note, setNote] = useState("");
  const [over, setOver] = useState(false);
  const input = useRef(null);

  const take = async (making) => {
    try {
      choose(await making);
      setNote("");
    } catch {
      setNote("This is no picture that the browser can show.");
    }
  };
  const takeFile = (file) => file && take(pictureOf(file, file.name || "pasted.png"));
  useDocument("paste", (event) => {
    const file = firstImage(event.clipboardData?.files);
    if (file) event.preventDefault();
    takeFile(file);
  });
  useDocument("dragover", (event) => {
    event.preventDefault();
    setOver(true);
  });
  useDocument("dragleave", (event) => !event.relatedTarget && setOver(false));
  useDocument("drop", (event) => {
    event.preventDefault();
    setOver(false);
    takeFile(firstImage(event.dataTransfer?.files));
  });

  return html`
    <div class=${names("picture", over && "over")}>
      ${picture && html`<${Regions} ...${{ picture, boxes, look }} />`}
      <div class="picture-tools">
        <label class="button">
          <input type="file" accept="image/*" class="hidden" ref=${input} onChange=${(event) => {
            takeFile(event.target.files[0]);
            event.target.value = "";
          }} />
          ${picture ? "Another picture" : "Choose a picture"}
        </label>
        ${picture && html`<button type="button" class="quiet" onClick=${() => choose(null)}>No picture</button>`}
        <span class="hint">or paste or drop one</span>
      </div>
      <div class="samples" role="group" aria-label="Pictures to begin with">
        ${SAMPLES.map(({ name, alt }) => html`
          <button type="button" key=${name} aria-pressed=${picture?.name === `${name}.png`}
            onClick=${() => take(sample(name))}>
            <img src=${sampleAt(name)} alt=${alt} width="48" height="48" />
          </button>`)}
      </div>
      <p class="problem" role="alert">${note}</p>
      <${ProblemAt} path="messages" />
    </div>`;
}

function useDocument(type, act) {
  const latest = useRef(act);
  latest.current = act;
  useEffect(() => {
    const listener = (event) => latest.current(event);
    document.addEventListener(type, listener);
    return () => document.removeEventListener(type, listener);
  }, [type]);
}
