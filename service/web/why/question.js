// What "Why" asks: in the address, and as requests. A target is a token or, on the way back, a neuron at a token.

import { href } from "../core/router.js";
import { neuronName } from "../core/parts.js";

const ROWS = 2 ** 19; // positions that an attribution computes at most, so that it takes about a second
const LEAST_WINDOW = 8;
const TOP_NEURONS = 60; // of which many are one neuron in several layers
const MAX_WRITTEN = 24; // tokens that are written after a text that nobody wrote
const SAMPLING = ["max_tokens", "temperature", "seed", "top_p", "top_k", "min_p"];

/**
 * A question:
 *
 * - ids: token ids of the whole text, its BOS included; empty if there is none yet
 * - trail: the targets so far, the last one is asked for; {at} or {at, layer, neuron}
 * - from: position of the first token that was written; undefined if nobody wrote it: then the target is the first
 * - edits: the interventions under which it was written, their positions counted as for its prompt
 * - sampling: how it was written
 * - without: the neuron that is left out, {at, layer, neuron}, or null
 */
export function readQuestion(params) {
  const ids = numbers(params.get("ids") ?? "");
  const trail = (params.get("trail") ?? "").split(";").map(readTarget).filter(Boolean);
  const isWhole = trail.length > 0 && trail[0].layer === undefined;
  const first = isWhole ? trail : [{ at: ids.length }];
  return {
    ids,
    trail: first,
    from: params.has("from") ? Number(params.get("from")) : undefined,
    edits: readEdits(params.get("edits") ?? "[]"),
    sampling: Object.fromEntries(
      SAMPLING.filter((name) => params.has(name)).map((name) => [name, Number(params.get(name))]),
    ),
    without: readTarget(params.get("without") ?? ""),
  };
}

/** The position of the first token that is written, or written anew. */
export function startOf({ from, trail }) {
  return from ?? trail[0].at;
}

/**
 * The address of a question of a model, as links name it.
 *
 * @param {string | null} model
 * @param {{ ids: number[], trail?: object[], from?: number, edits?: object[], sampling?: object, without?: object }} question
 */
export function whyAddress(model, { ids, trail = [], from, edits = [], sampling = {}, without }) {
  return href("why", [], {
    model,
    ids: ids.join(","),
    trail: trail.map(targetName).join(";"),
    from,
    edits: edits.length > 0 ? JSON.stringify(edits) : null,
    ...sampling,
    without: without ? targetName(without) : null,
  });
}

/** The question about a text that a request wrote, without its trail. */
export function questionOf(request, { tokenIds, phases }, isSteered) {
  const start = phases.indexOf("generated");
  return {
    ids: tokenIds,
    from: start < 0 ? tokenIds.length : start,
    edits: isSteered ? (request.interventions ?? []) : [],
    sampling: Object.fromEntries(SAMPLING.filter((name) => name in request).map((name) => [name, request[name]])),
  };
}

/** `12` for a token, `3/41@12` for a neuron at it. */
export function targetName({ at, layer, neuron }) {
  return layer === undefined ? String(at) : `${neuronName(layer, neuron)}@${at}`;
}

function readTarget(text) {
  const found = /^(?:(\d+)\/(\d+)@)?(\d+)$/.exec(text);
  if (!found) return null;
  const at = Number(found[3]);
  return found[1] === undefined ? { at } : { at, layer: Number(found[1]), neuron: Number(found[2]) };
}

function readEdits(text) {
  try {
    const edits = JSON.parse(text);
    return Array.isArray(edits) ? edits : [];
  } catch {
    return []; // an incomplete address
  }
}

function numbers(text) {
  return text.split(",").filter((part) => /^\d+$/.test(part)).map(Number);
}

/** The body for /v1/attributions; null without a text. */
export function attributionBody(question, model) {
  const { ids, trail, edits } = question;
  const target = trail.at(-1);
  if (ids.length === 0 || target.at > ids.length) return null;
  const isNeuron = target.layer !== undefined;
  const numRead = isNeuron ? target.at + 1 : target.at;
  const { topk_layers: layers, k } = model.topk;
  const window = Math.max(LEAST_WINDOW, Math.floor(Math.sqrt((2 * ROWS) / (layers.length * k))));
  return {
    model: model.id,
    prompt: ids.slice(0, target.at + 1),
    target: isNeuron
      ? { position: target.at, layer: target.layer, neuron: target.neuron }
      : { position: target.at },
    top_n: TOP_NEURONS,
    interventions: edits.map((edit) => fixed(edit, startOf(question))),
    ...(numRead > window && { positions: { start: numRead - window } }),
  };
}

/** The bodies for /v1/completions that write the text, and write it without a neuron. */
export function rewritingBodies(question, model) {
  const { ids, edits, sampling, without } = question;
  const plain = { max_tokens: MAX_WRITTEN, temperature: 0, ...sampling };
  const common = { model: model.id, prompt: ids.slice(0, startOf(question)), ...plain };
  const { at, layer, neuron } = without;
  const positions = { start: at, end: at + 1 };
  const ablation = { layer, neuron, op: "ablate", positions, include_special: true };
  return [edits, [...edits, ablation]].map((interventions) => ({ ...common, interventions }));
}

/** An edit with its positions counted from the text's beginning, not from the end of a prompt of `from` tokens. */
function fixed(edit, from) {
  const { positions = "all" } = edit;
  const named = { prompt: { start: 0, end: from }, continuation: { start: from - 1 }, generated: { start: from } };
  if (typeof positions === "string") return positions in named ? { ...edit, positions: named[positions] } : edit;
  const count = (place) => (place < 0 ? Math.max(0, from + place) : place);
  const range = Object.entries(positions).map(([end, place]) => [end, count(place)]);
  return { ...edit, positions: Object.fromEntries(range) };
}
