// One answer while it comes: what it says, token by token, and how it ended.

import { Refused, stream } from "./api.js";
import { arraysOf } from "./trace.js";

const REDRAW_MS = 40;

export const ENDED = ["done", "stopped", "broken", "refused"];

/**
 * An answer that nothing has come of yet. Its state becomes "streaming", then one of:
 * "done"; "stopped" by the reader; "broken", the server went away; "refused" with an error.
 */
function empty() {
  return {
    state: "waiting",
    text: "",
    reasoning: "",
    tokens: [],
    finish: null,
    usage: null,
    receipt: [],
    trace: null,
    arrays: {},
    ignored: null,
    error: null,
  };
}

/** Asks, and tells `report` now and then what has come; `abort()` ends it. */
export function ask(body, report) {
  const control = new AbortController();
  const answer = empty();
  const decoder = new TextDecoder();
  let timer = null;
  const tell = () => {
    timer = null;
    report({ ...answer, tokens: [...answer.tokens] });
  };
  const tellSoon = () => (timer ??= setTimeout(tell, REDRAW_MS));

  async function run() {
    try {
      for await (const chunk of stream("v1/chat/completions", body, control.signal)) {
        take(answer, chunk, decoder);
        tellSoon();
      }
      answer.state = "done";
    } catch (error) {
      answer.state = control.signal.aborted ? "stopped" : error instanceof Refused ? "refused" : "broken";
      if (answer.state !== "stopped") answer.error = error;
    }
    clearTimeout(timer);
    tell();
  }

  const ended = run();
  tell();
  return { abort: () => control.abort(), ended };
}

function take(answer, chunk, decoder) {
  answer.state = "streaming";
  if ("ignored" in chunk) answer.ignored = chunk.ignored;
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.interventions_applied) answer.receipt = chunk.interventions_applied;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const said = choice.delta?.content ?? "";
  const thought = choice.delta?.reasoning_content ?? "";
  answer.text += said;
  answer.reasoning += thought;
  const thinks = answer.text === "" && answer.reasoning !== "";
  for (const entry of choice.logprobs?.content ?? []) {
    answer.tokens.push({ ...token(entry, said + thought, decoder), thinks });
  }
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  if (choice.trace) {
    answer.trace = choice.trace;
    answer.arrays = arraysOf(choice.trace);
  }
}

/** A token with what it shows: nothing, if it ends the answer or is part of a character. */
function token(entry, said, decoder) {
  const bytes = Uint8Array.from(entry.bytes ?? []);
  const shown = said === "" && entry.token.startsWith("<") ? "" : decoder.decode(bytes, { stream: true });
  return {
    token: entry.token,
    text: shown,
    logprob: entry.logprob,
    alternatives: entry.top_logprobs ?? [],
  };
}
