// JSON Schemas of methods as form fields, and what was typed into them as values.
//
// A field that was left alone is left out of the request, so its default is the server's. What cannot
// be read as a value is sent as it was typed: the server refuses it and names the field.

const NULL = JSON.stringify({ type: "null" });
const WORDS = /^\^\(([\w|]+)\)\(\\\+\(\1\)\)\*\$$/;

/** The fields of an object's schema that a form can show, those that are required first. */
export function fieldsOf(schema, root = schema) {
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {})
    .filter(([name]) => name !== "method")
    .map(([name, property]) => describe(name, property, root, required.has(name)));
  const rank = (field) => (field.required ? 0 : field.name === "version" ? 2 : 1);
  return fields.filter((field) => field.kind !== "fixed").sort((x, y) => rank(x) - rank(y));
}

function describe(name, property, root, required) {
  const whole = follow(property, root);
  const { schema, nullable } = withoutNull(whole, root);
  return {
    name,
    label: name.replaceAll("_", " "),
    help: (whole.description ?? schema.description ?? "").replaceAll("\n", " "),
    required,
    nullable,
    fallback: whole.default,
    minimum: schema.minimum ?? schema.exclusiveMinimum,
    maximum: schema.maximum ?? schema.exclusiveMaximum,
    ...kindOf(schema, root),
  };
}

function follow(schema, root) {
  if (!schema.$ref) return schema;
  const found = schema.$ref.replace(/^#\//, "").split("/").reduce((at, part) => at[part], root);
  return { ...follow(found, root), ...schema, $ref: undefined };
}

function withoutNull(schema, root) {
  const forms = schema.anyOf;
  if (!forms) return { schema, nullable: false };
  const rest = forms.filter((form) => JSON.stringify(form) !== NULL).map((form) => follow(form, root));
  const nullable = rest.length < forms.length;
  if (rest.length > 1) return { schema: { ...schema, anyOf: undefined, oneOf: rest }, nullable };
  return { schema: { ...rest[0], enum: schema.enum ?? rest[0].enum }, nullable };
}

function kindOf(schema, root) {
  if (schema.const !== undefined) return { kind: "fixed" };
  if (schema.enum) return { kind: "choice", options: schema.enum.filter((option) => option !== null) };
  if (schema.oneOf) return oneOf(schema.oneOf);
  if (schema.pattern?.startsWith("^sha256:")) return { kind: "artifact" };
  const set = schema.pattern?.match(WORDS);
  if (set) return { kind: "words", options: set[1].split("|") };
  if (schema.type === "object") return objectKind(schema, root);
  if (schema.type === "array") return { kind: arrayKind(schema.items ?? {}) };
  const kinds = { boolean: "switch", number: "number", integer: "integer", string: "text" };
  return { kind: kinds[schema.type] ?? "json" };
}

function objectKind(schema, root) {
  if (schema.patternProperties) return { kind: "heads" };
  if (schema.properties) return { kind: "object", fields: fieldsOf(schema, root) };
  return { kind: "json" };
}

function arrayKind(items) {
  if (items.type === "integer") return "integers";
  return items.type === "string" ? "texts" : "json";
}

/** Several forms of one field: lists of heads, or words and a number or a list of numbers. */
function oneOf(forms) {
  if (forms.some((form) => form.patternProperties)) return { kind: "heads" };
  const number = forms.find((form) => form.type === "number" || form.type === "integer");
  const words = forms.flatMap((form) => form.enum ?? (form.const !== undefined ? [form.const] : []));
  const lists = forms.some((form) => form.type === "array" && form.items?.type === "integer");
  if (words.length && lists) return { kind: "integers", options: words };
  if (words.length && number) {
    const { minimum, maximum } = number;
    return { kind: number.type, options: words, minimum, maximum };
  }
  return { kind: "json" };
}

/** How a field is to be written, in a few words. */
export function howToWrite(field) {
  const words = field.options?.join(", ");
  const ways = {
    integers: `numbers, as in 2-4, 7${words ? `, or ${words}` : ""}`,
    heads: "all, or heads as in 0, 2, or by layer as in 1: 0, 2; 3: 4",
    texts: "a text a line",
    json: "JSON",
  };
  return ways[field.kind] ?? range(field) + (range(field) && words ? ` or ${words}` : "");
}

function range({ kind, minimum, maximum }) {
  if (kind !== "number" && kind !== "integer") return "";
  const bounds = [minimum, maximum].map((bound) => (Math.abs(bound) < 1e12 ? bound : undefined));
  if (bounds[0] !== undefined && bounds[1] !== undefined) return `${bounds[0]} to ${bounds[1]}`;
  if (bounds[0] !== undefined) return `from ${bounds[0]}`;
  return bounds[1] !== undefined ? `up to ${bounds[1]}` : "";
}

/** A value as it would be typed. */
export function written(field, value) {
  if (value === null || value === undefined) return "";
  if (field.kind === "texts") return value.join("\n");
  if (field.kind === "integers" && Array.isArray(value)) return value.join(", ");
  if (field.kind === "heads" && typeof value === "object") return writtenHeads(value);
  if (field.kind === "switch") return value;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function writtenHeads(value) {
  if (Array.isArray(value)) return value.join(", ");
  return Object.entries(value).map(([layer, heads]) => `${layer}: ${heads.join(", ")}`).join("; ");
}

/** What was typed, as a value; undefined if the field was left alone. */
export function read(field, typed) {
  if (field.kind === "object") return readObject(field.fields, typed);
  if (typed === undefined || typed === "" || typed === field.fallback) return undefined;
  const readers = { number, integer: number, integers, heads, texts, json };
  return readers[field.kind] ? readers[field.kind](typed, field) : typed;
}

function readObject(fields, typed = {}) {
  const entries = fields
    .map((field) => [field.name, read(field, typed[field.name])])
    .filter(([, value]) => value !== undefined);
  return entries.length ? Object.fromEntries(entries) : undefined;
}

/** The entry of a request for a method and what was typed into its form. */
export function entryOf(method, fields, typed) {
  return { method, ...readObject(fields, typed) };
}

function number(typed) {
  return /^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*$/i.test(typed) ? Number(typed) : typed;
}

function integers(typed, field) {
  const bare = typed.trim();
  if (field?.options?.includes(bare)) return bare;
  const found = [];
  for (const part of bare.split(/[\s,]+/).filter(Boolean)) {
    const run = part.match(/^(\d+)(?:-(\d+))?$/);
    if (!run) return typed;
    const [from, to] = [Number(run[1]), Number(run[2] ?? run[1])];
    if (to < from || to - from > 10_000) return typed;
    for (let n = from; n <= to; n++) found.push(n);
  }
  return found;
}

function heads(typed) {
  const bare = typed.trim();
  if (bare === "all" || !bare.includes(":")) return bare === "all" ? bare : integers(typed);
  const found = {};
  for (const part of bare.split(";").filter((text) => text.trim())) {
    const [layer, list, ...more] = part.split(":");
    const numbers = more.length || list === undefined ? typed : integers(list);
    if (!/^\s*\d+\s*$/.test(layer) || !Array.isArray(numbers)) return typed;
    found[Number(layer)] = numbers;
  }
  return found;
}

function texts(typed) {
  return typed.split("\n").filter(Boolean);
}

function json(typed) {
  try {
    return JSON.parse(typed);
  } catch {
    return typed;
  }
}
