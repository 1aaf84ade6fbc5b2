// The content of the form of "Write and steer", as an address and as a request.

import { hasNeurons } from "../core/limits.js";
import { newRow, readStack, stackOf } from "./edits.js";
import { parseNeuron } from "../core/parts.js";
import { numberOf } from "./fields.js";

const EMPTY = {
  prompt: "Once upon a time,",
  max_tokens: 48,
  temperature: 0.7,
  seed: 1,
  top_p: 1,
  top_k: 0,
  min_p: 0,
  stop: "", // as typed: one per line
  isTraced: true,
  rows: [],
  example: undefined, // the name of the stored example that is shown; undefined: the first, before anything is done
  neuron: undefined, // the one by which the trace is shaded; undefined: an edited one, null: none
};
const NUMBERS = ["max_tokens", "temperature", "seed", "top_p", "top_k", "min_p"];
// Left out of requests if they have the service's default, so that the code stays short.
const PLAIN = { top_p: 1, top_k: 0, min_p: 0 };
const OWN = [...NUMBERS, "prompt", "stop", "trace", "stack", "example"];

let kept = null;

/** Keeps a draft while other views are open. */
export function keepDraft(draft) {
  kept = draft;
}

/** The draft that an address means; if the address has none, the one that was kept. */
export function readDraft(params) {
  const isGiven = OWN.some((name) => params.has(name));
  return isGiven || kept === null ? fromParams(params) : kept;
}

/** Whether nothing has been typed or chosen yet. */
export function isUntouched(draft) {
  return Object.values(paramsOf(draft)).every((value) => value === null || value === undefined || value === "");
}

/** The draft whose request a stored example is of. */
export function draftOfExample({ prompt, max_tokens, temperature, seed, layer, neuron, value }) {
  const edit = { layer, neuron, op: "add", value, positions: "continuation" };
  return { ...EMPTY, prompt, max_tokens, temperature, seed, rows: [newRow(edit)] };
}

/** The stored example that a request is of, whether it is traced or not; undefined if there is none. */
export function exampleOf(request, model) {
  const text = JSON.stringify({ ...request, trace: undefined });
  return model.topk.examples.find((each) => JSON.stringify(requestOf(draftOfExample(each), model, false)) === text);
}

function fromParams(params) {
  const draft = { ...EMPTY, prompt: params.get("prompt") ?? EMPTY.prompt, stop: params.get("stop") ?? "" };
  for (const name of NUMBERS) if (params.has(name)) draft[name] = numberOf(params.get(name));
  draft.isTraced = params.get("trace") !== "off";
  draft.example = params.get("example") ?? undefined;
  draft.neuron = params.has("neuron") ? parseNeuron(params.get("neuron")) : undefined;
  try {
    draft.rows = readStack(params.get("stack") ?? "[]");
  } catch {
    draft.rows = []; // an incomplete address
  }
  return draft;
}

/** The parameters of a draft's address; those with default values are null. */
export function paramsOf(draft) {
  const unlessDefault = (name) => (draft[name] === EMPTY[name] ? null : draft[name]);
  return {
    prompt: unlessDefault("prompt"),
    ...Object.fromEntries(NUMBERS.map((name) => [name, unlessDefault(name)])),
    stop: draft.stop,
    trace: draft.isTraced ? null : "off",
    example: draft.example,
    stack: draft.rows.length > 0 ? JSON.stringify(stackOf(draft.rows)) : null,
    neuron: draft.neuron === null ? "none" : draft.neuron && `${draft.neuron.layer}/${draft.neuron.neuron}`,
  };
}

/** The API request for a draft, without `stream`. */
export function requestOf(draft, model, isTraced = draft.isTraced) {
  const interventions = draft.rows.filter(({ isOn }) => isOn).map(({ edit }) => edit);
  const fields = { model: model.id, prompt: draft.prompt };
  for (const name of NUMBERS) {
    if (draft[name] !== undefined && draft[name] !== PLAIN[name]) fields[name] = draft[name];
  }
  const stop = stopStrings(draft.stop);
  if (stop.length > 0) fields.stop = stop;
  if (interventions.length > 0) Object.assign(fields, { interventions, compare: true });
  if (isTraced && hasNeurons(model)) fields.trace = {}; // all layers, all positions
  return fields;
}

/** One per line; `\n` and `\t` stand for characters that a line cannot contain, `\\` for a backslash. */
function stopStrings(text) {
  const meanings = { n: "\n", t: "\t", "\\": "\\" };
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\([nt\\])/g, (_, letter) => meanings[letter]));
}

export function newSeed() {
  return Math.floor(Math.random() * 2 ** 31);
}
