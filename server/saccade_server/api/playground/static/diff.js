// Two texts word by word: which words only one of them has. As the server's command line compares.

// A word or a mark, with the space before it.
const WORD = /\s*(?:[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s])/gu;

export function words(text) {
  return text.match(WORD) ?? [];
}

/** The longest run of equal items within [a1, a2) and [b1, b2); the first of several. */
function longestRun(a, places, [a1, a2, b1, b2]) {
  let best = { i: a1, j: b1, size: 0 };
  let lengths = new Map();
  for (let i = a1; i < a2; i++) {
    const next = new Map();
    for (const j of places.get(a[i]) ?? []) {
      if (j < b1) continue;
      if (j >= b2) break;
      const size = (lengths.get(j - 1) ?? 0) + 1;
      next.set(j, size);
      if (size > best.size) best = { i: i - size + 1, j: j - size + 1, size };
    }
    lengths = next;
  }
  return best;
}

/** Runs of equal items, {i, j, size}, in order: the longest first, then left and right of it. */
export function matches(a, b) {
  const places = new Map();
  b.forEach((item, j) => places.set(item, [...(places.get(item) ?? []), j]));
  const found = [];
  const waiting = [[0, a.length, 0, b.length]];
  while (waiting.length) {
    const [a1, a2, b1, b2] = waiting.pop();
    const run = longestRun(a, places, [a1, a2, b1, b2]);
    if (!run.size) continue;
    found.push(run);
    waiting.push([a1, run.i, b1, run.j], [run.i + run.size, a2, run.j + run.size, b2]);
  }
  return found.sort((x, y) => x.i - y.i);
}

/** Stretches of characters that only one text has, spaces around them left out. */
function stretches(list, common) {
  const found = [];
  let at = 0;
  list.forEach((word, index) => {
    const start = at + (word.length - word.trimStart().length);
    at += word.length;
    if (common.has(index)) return;
    const last = found.at(-1);
    if (last && last.word === index - 1) Object.assign(last, { end: at, word: index });
    else found.push({ start, end: at, word: index });
  });
  return found.map(({ start, end }) => [start, end]);
}

/**
 * What differs: [start, end) stretches of each text. `across(position)` is the place in the first text
 * that a place in the second corresponds to, `back` the reverse.
 */
export function compare(first, second) {
  const [a, b] = [words(first), words(second)];
  const runs = matches(a, b);
  const inA = new Set(runs.flatMap(({ i, size }) => Array.from({ length: size }, (_, k) => i + k)));
  const inB = new Set(runs.flatMap(({ j, size }) => Array.from({ length: size }, (_, k) => j + k)));
  const [inFirst, inSecond] = [offsets(a), offsets(b)];
  const pairs = runs.flatMap(({ i, j, size }) => [
    [inFirst[i], inSecond[j]],
    [inFirst[i + size], inSecond[j + size]],
  ]);
  return {
    first: stretches(a, inA),
    second: stretches(b, inB),
    across: (position) => map(pairs, position, 1),
    back: (position) => map(pairs, position, 0),
  };
}

function offsets(list) {
  const found = [0];
  for (const word of list) found.push(found.at(-1) + word.length);
  return found;
}

/** Between two pairs of corresponding places: as far behind the one before it. */
function map(pairs, position, side) {
  const before = pairs.filter((pair) => pair[side] <= position).at(-1) ?? [0, 0];
  return before[1 - side] + (position - before[side]);
}

/** The same for texts that may still grow: only as many words as both have. */
export function compareSoFar(first, second, whole) {
  if (whole) return compare(first, second);
  const [a, b] = [words(first), words(second)];
  const shared = Math.max(0, Math.min(a.length, b.length) - 1);
  return compare(a.slice(0, shared).join(""), b.slice(0, shared).join(""));
}
