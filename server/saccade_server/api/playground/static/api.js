// Calls to the server that this page came from, with the key that the user typed.

// Session storage: the key is this tab's own and gone with it.
const SLOT = "api-key";

export class Refused extends Error {
  /** An answer that is an error; `param` is the JSON path of the field that is wrong. */
  constructor(status, { message, param = null, code = "" }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

export class Unreachable extends Error {}

export const key = {
  get: () => sessionStorage.getItem(SLOT),
  set: (value) => sessionStorage.setItem(SLOT, value),
  forget: () => sessionStorage.removeItem(SLOT),
};

/** The address of a route; the page may lie behind a proxy's prefix. */
export function address(route) {
  return new URL(route, document.baseURI).href;
}

async function send(route, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const method = body ? "POST" : "GET";
    answer = await fetch(address(route), { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const said = await answer.json().catch(() => null);
  const error = said?.error ?? { message: `The server answered with status ${answer.status}.` };
  return new Refused(answer.status, error);
}

export async function get(route) {
  return (await send(route)).json();
}

export async function post(route, body, signal) {
  return (await send(route, { body, signal })).json();
}

/**
 * Yields the chunks of a streamed answer.
 * Throws Refused before or within it, and Unreachable if it breaks off.
 */
export async function* stream(route, body, signal) {
  const answer = await send(route, { body, signal });
  yield { ignored: answer.headers.get("x-saccade-ignored-fields") };
  for await (const data of events(answer.body.getReader())) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(200, chunk.error);
    yield chunk;
  }
  throw new Unreachable("The server stopped in the middle of its answer.");
}

async function* events(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  while (true) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable("The connection broke in the middle of the answer.");
    }
    if (piece.done) return;
    rest += decoder.decode(piece.value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) yield block.slice("data: ".length);
    }
  }
}
