// An entry of `interventions_applied` in words; the same words as the server's command line.

const COUNTED = { contrasted: "contrasted tokens" };

const MEANING = {
  applied: "it changed something",
  no_effect: "it ran and changed nothing",
  cached: "its rows came from the prefix cache",
  neutral: "its settings ask for no change",
  unconfirmed: "the engine sent no report of it",
};

/** What the status of an entry means, in a clause. */
export function meaning(entry) {
  return MEANING[entry.status] ?? "";
}

/** One entry without its method: `applied: 24 rows, 18 heads of layers 2-4`. */
export function receiptLine(entry) {
  const parts = [rows(entry), moved(entry.edits), ...counters(entry), filledIn(entry)];
  const said = parts.filter(Boolean);
  return entry.status + (said.length ? `: ${said.join(", ")}` : "");
}

/** Ascending numbers, runs of them shortened: 2-4, 7. */
export function ranges(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(", ");
}

function rows({ rows: { prompt, generated, cached }, heads, layers }) {
  const computed = prompt + generated;
  if (!computed && !cached) return "";
  const shared = cached ? ` and ${cached} cached` : "";
  const which = heads ? `${count(heads, "head")} of ` : "";
  const noun = layers.length > 1 ? "layers" : "layer";
  const where = layers.length ? `, ${which}${noun} ${ranges(layers)}` : "";
  return `${count(computed, "row")}${shared}${where}`;
}

function moved({ moved: changed, evaluated }) {
  return changed === null ? "" : `moved ${changed} of ${evaluated}`;
}

function counters(entry) {
  return Object.entries(entry.counters).map(([name, value]) => `${value} ${COUNTED[name] ?? name}`);
}

function filledIn(entry) {
  const values = Object.entries(entry.filled_in)
    .filter(([name]) => name !== "layers")
    .map(([name, value]) => `${name} ${JSON.stringify(value)}`);
  return values.length ? `${values.join(", ")} from the artifact` : "";
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
