// What was wrong with a request, beside the field that caused it.

import { createContext } from "preact";
import { useContext } from "preact/hooks";
import { html } from "./html.js";

export const Problem = createContext(null);

/** Whether a path is that of a field, or of a part of it. */
export function lies(param, path) {
  return param === path || param.startsWith(`${path}.`) || param.startsWith(`${path}[`);
}

/** The problem of the field at a path, such as `interventions[0].alpha`, or null. */
export function useProblem(path) {
  const problem = useContext(Problem);
  return problem?.param && lies(problem.param, path) ? problem : null;
}

/** The problem at a path, in words; not if it lies at one of the paths `below`, which show their own. */
export function ProblemAt({ path, id, below = [] }) {
  const problem = useProblem(path);
  const shown = problem && !below.some((inner) => lies(problem.param, inner));
  return shown && html`<p class="problem" id=${id}>${problem.message} <code>${problem.param}</code></p>`;
}
