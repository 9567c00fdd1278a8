// The two answers of a request while they come.

import { useRef, useState } from "preact/hooks";
import { ENDED, ask } from "./answer.js";
import { streamed } from "./body.js";

const NO_ANSWERS = { plain: null, edited: null };

/** `start(bodies)` asks for both, or for one whose other body is null; `stop()` ends them. */
export function useAnswers() {
  const [answers, setAnswers] = useState(NO_ANSWERS);
  const asked = useRef([]);
  const stop = () => asked.current.forEach(({ abort }) => abort());
  const start = (bodies) => {
    stop();
    const round = [];
    asked.current = round;
    setAnswers(NO_ANSWERS);
    for (const [name, body] of Object.entries(bodies)) {
      if (!body) continue;
      const report = (answer) =>
        asked.current === round && setAnswers((all) => ({ ...all, [name]: answer }));
      round.push(ask(streamed(body), report));
    }
  };
  const running = Object.values(answers).some((answer) => answer && !ENDED.includes(answer.state));
  return { answers, running, start, stop };
}
