// Components without a build step: Preact, written in template strings.
import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);

/** Class names that hold, as one string. */
export function names(...all) {
  return all.filter(Boolean).join(" ");
}
