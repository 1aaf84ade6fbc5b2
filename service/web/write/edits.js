// Interventions as the API takes them, and how the form changes them. Fields that the form does not know
// (`when`, `include_special`, any future ones) are kept and sent unchanged. Knows no page.

import { neuronName } from "../core/parts.js";

/** The form's names for the ops. */
export const OPS = { set: "set to", add: "add", scale: "scale by", ablate: "ablate", clamp: "clamp" };

// The order in which an intervention's fields are written.
const ORDER = "preset strength layer neuron op value min max unit site positions when include_special".split(" ");

// Fields that the form shows.
const SHOWN = new Set("preset strength layer neuron op value min max unit site positions".split(" "));

export function takesValue(op) {
  return op === "set" || op === "add" || op === "scale";
}

export function takesUnit(op) {
  return op === "set" || op === "add" || op === "clamp";
}

const USUAL_STRENGTH = 0.4; // × max, of a neuron for which no best one has been measured

/**
 * The best measured value to add to a neuron, in multiples of its largest activation: that of its strongest preset, or
 * else its catalogue `page`'s. Undefined if none was measured.
 */
export function bestStrength({ layer, neuron }, page, presets) {
  const own = presets.filter((preset) => preset.layer === layer && preset.neuron === neuron);
  const [preset] = own.sort((one, other) => other.found.log_odds - one.found.log_odds);
  return preset && page?.max > 0 ? preset.value / page.max : page?.steering?.in_units_of_max;
}

/** Adds a neuron wherever the model chooses what to write, by the best value that is known; `page` may be null. */
export function newEdit(neuron, page, { has_catalogue: hasCatalogue, presets }) {
  const unit = unitFor(hasCatalogue, page);
  const value = unit === "max" ? rounded(bestStrength(neuron, page, presets) ?? USUAL_STRENGTH) : 1;
  return { layer: neuron.layer, neuron: neuron.neuron, op: "add", value, unit, positions: "continuation" };
}

/** Adds a preset in the same way. */
export function presetEdit(preset) {
  return { preset: presetName(preset), strength: 1, positions: "continuation" };
}

/** The unit for an edit that has none: the neuron's largest activation, if the catalogue has one. */
export function unitFor(hasCatalogue, summary) {
  return hasCatalogue && (!summary || summary.max > 0) ? "max" : "kth";
}

/** The intervention with other fields; one that is undefined is removed. */
export function changed(edit, fields) {
  const merged = { ...edit, ...fields };
  const names = [...ORDER, ...Object.keys(merged).filter((name) => !ORDER.includes(name))];
  return Object.fromEntries(names.filter((name) => merged[name] !== undefined).map((name) => [name, merged[name]]));
}

/** The same with another op and the fields of that op. `unit` is used if there was none. */
export function withOp(edit, op, unit) {
  const { value = 1, min = 0, max = 1 } = edit;
  const isBecomingFactor = op === "scale" && edit.op !== "scale";
  const oldUnit = takesUnit(edit.op) ? edit.unit : unit;
  return changed(edit, {
    op,
    value: takesValue(op) ? (isBecomingFactor ? 2 : value) : undefined,
    min: op === "clamp" ? min : undefined,
    max: op === "clamp" ? max : undefined,
    unit: takesUnit(op) ? oldUnit : undefined,
  });
}

/** The same in another unit; its numbers follow if the neuron's largest activation is known. */
export function withUnit(edit, unit, largest) {
  const old = edit.unit ?? "raw";
  let factor = 1;
  if (largest > 0 && old === "max" && unit === "raw") factor = largest;
  if (largest > 0 && old === "raw" && unit === "max") factor = 1 / largest;
  const converted = (value) => (factor !== 1 && typeof value === "number" ? rounded(value * factor) : value);
  return changed(edit, { unit, value: converted(edit.value), min: converted(edit.min), max: converted(edit.max) });
}

/** Rounded to three digits, and limited to the slider's range. */
export function rounded(value) {
  return Number(value.toPrecision(3));
}

/** The layers that are edited. */
export function layersOf(edit, topkLayers) {
  if (edit.layer === "all") return topkLayers;
  return Array.isArray(edit.layer) ? edit.layer : [edit.layer];
}

/** `layer/neuron`, or the preset's name. */
export function editName(edit) {
  if (edit.preset !== undefined) return String(edit.preset);
  return neuronName(Array.isArray(edit.layer) ? edit.layer.join(",") : edit.layer, edit.neuron);
}

/** The only neuron that it edits, {layer, neuron}; null if there are several or it is unknown. */
export function neuronOf(edit, presets) {
  const preset = edit.preset === undefined ? null : presetOf(edit.preset, presets);
  const { layer, neuron } = preset ?? edit;
  return Number.isInteger(layer) && Number.isInteger(neuron) ? { layer, neuron } : null;
}

/** The preset of that name; undefined if the model has none. */
export function presetOf(name, presets) {
  const named = presets.filter((preset) => preset.name === name || presetName(preset) === name);
  return named.sort((one, other) => other.version - one.version)[0];
}

export function presetName({ name, version }) {
  return `${name}@${version}`;
}

/** Names of the fields that the form does not show. */
export function hiddenFields(edit) {
  return Object.keys(edit).filter((name) => !SHOWN.has(name));
}

/** Whether the path `field`, as in errors, is that of `name` or of something inside it. */
export function isWithin(field, name) {
  return field === name || field.startsWith(`${name}.`) || field.startsWith(`${name}[`);
}

let lastId = 0;

/** A row of the stack: an intervention, and whether it is sent. */
export function newRow(edit, isOn = true) {
  return { id: ++lastId, edit, isOn };
}

/** The stack as JSON: interventions, disabled ones with `"off": true`. */
export function stackOf(rows) {
  return rows.map(({ edit, isOn }) => (isOn ? edit : { ...edit, off: true }));
}

/** Rows from such JSON. Throws a SyntaxError. */
export function readStack(text) {
  const stack = JSON.parse(text);
  if (!Array.isArray(stack)) throw new SyntaxError("It must be a list of interventions.");
  const bad = stack.findIndex((one) => one === null || typeof one !== "object" || Array.isArray(one));
  if (bad >= 0) throw new SyntaxError(`Item ${bad + 1} must be an object.`);
  return stack.map(({ off, ...edit }) => newRow(edit, off !== true));
}
