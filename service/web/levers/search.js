// A search for levers, in the address and as a request.

export const EMPTY = { words: "", prompt: "Once upon a time,", max_cost: "0.2" };
const LIMIT = 5;

/** @returns {{ words: string, prompt: string, max_cost: string }} */
export function readFields(params) {
  return /** @type {any} */ (Object.fromEntries(Object.entries(EMPTY).map(([name, value]) => [name, params.get(name) ?? value])));
}

/** The parameters of the address; those with default values are null. */
export function paramsOf(fields) {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [name, value === EMPTY[name] ? null : value]),
  );
}

/** The body for /v1/levers; null without words. */
export function bodyOf({ words, prompt, max_cost: cost }, model) {
  const wanted = words.split(/[,;\n]|\s+/).filter((word) => word !== "");
  if (wanted.length === 0) return null;
  return {
    model: model.id,
    words: [...new Set(wanted)],
    ...(prompt && { prompt }),
    max_cost: Number(cost),
    limit: LIMIT,
  };
}
