// A search for levers, in the address and as a request: for words, or for texts against others.

const LIMIT = 5;
const COMMON = { prompt: "Once upon a time,", max_cost: "0.2" };

/** The ways to search, by name: the parts of their addresses, and their fields with the default values. */
export const MODES = {
  words: { title: "For words", parts: [], empty: { words: "", ...COMMON } },
  texts: { title: "For texts", parts: ["texts"], empty: { towards: "", away: "", ...COMMON } },
};

/** @returns {any} the fields of a mode, each a text */
export function readFields(mode, params) {
  const { empty } = MODES[mode];
  return Object.fromEntries(Object.entries(empty).map(([name, value]) => [name, params.get(name) ?? value]));
}

/** The parameters of the address; those with default values are null. */
export function paramsOf(mode, fields) {
  const { empty } = MODES[mode];
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, value === empty[name] ? null : value]));
}

/** The body for /v1/levers; null without words, or without texts on either side. */
export function bodyOf(mode, fields, model) {
  const target = mode === "words" ? wordsOf(fields) : textsOf(fields);
  if (target === null) return null;
  const { prompt, max_cost: cost } = fields;
  return { model: model.id, ...target, ...(prompt && { prompt }), max_cost: Number(cost), limit: LIMIT };
}

function wordsOf({ words }) {
  const wanted = words.split(/[,;\s]+/).filter((word) => word !== "");
  return wanted.length > 0 ? { words: [...new Set(wanted)] } : null;
}

function textsOf({ towards, away }) {
  const [one, other] = [towards, away].map((text) => text.split("\n").filter((line) => line.trim()));
  return one.length > 0 && other.length > 0 ? { texts: { towards: one, away: other } } : null;
}
