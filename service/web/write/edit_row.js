// One intervention of the stack, as a form.

import { useState } from "preact/hooks";
import {
  bestStrength,
  changed,
  editName,
  hiddenFields,
  isWithin,
  layersOf,
  neuronOf,
  OPS,
  presetOf,
  takesUnit,
  takesValue,
  unitFor,
  withOp,
  withUnit,
} from "./edits.js";
import { NumberField, Select } from "./fields.js";
import { useNeuronPage } from "../core/models.js";
import { NeuronPicker } from "./neuron_picker.js";
import { html, NeuronLink, neuronName, number } from "../core/parts.js";
import { Strength } from "./strength.js";

// "generated" begins one token later than "continuation": after the choice of the first generated token.
const POSITIONS = {
  all: "all",
  prompt: "prompt",
  continuation: "continuation",
  generated: "generated",
  range: "from – to",
};
const UNITS = { max: "× max", kth: "× k-th", raw: "raw" };
const MEANINGS = {
  max: (largest) => (largest > 0 ? `Its largest activation is ${number(largest)}.` : ""),
  kth: () => "In multiples of the k-th kept value at each token.",
  raw: (largest) => (largest > 0 ? `Its largest activation is ${number(largest)}.` : ""),
};
const SITES = {
  post_topk: "after the selection: forced, k + 1 may be active",
  pre_topk: "before the selection: it must win its place",
};

/**
 * `fault` is the service's error about this intervention: {field, message}. `actions` are those of the row: {onChange,
 * onSwitch, onMove, onCopy, onRemove}.
 */
export function EditRow({ row, place, total, model, summaries, fault, actions }) {
  const { edit } = row;
  const { presets, topk_layers: topkLayers, has_catalogue: hasCatalogue } = model.topk;
  const [isChoosing, choose] = useState(false);
  const neuron = neuronOf(edit, presets);
  const summary = neuron && summaries?.get(neuronName(neuron.layer, neuron.neuron));
  const isPreset = edit.preset !== undefined;
  const set = (fields) => actions.onChange(changed(edit, fields));
  const faultOf = (name) => (fault && isWithin(fault.field, name) ? fault.message : undefined);
  const isShown = fault && controlsOf(edit).some((name) => isWithin(fault.field, name));
  const pick = (picked) => {
    choose(false);
    set(picked);
  };
  const page = useNeuronPage(model, neuron);
  const scale = page?.steering && { curve: page.steering.curve, best: bestStrength(neuron, page, presets) };
  const props = { edit, set, faultOf, summary, scale, hasCatalogue, topkLayers };
  const hidden = hiddenFields(edit);
  return html`<li>
    <fieldset class=${`edit${fault ? " faulty" : ""}${row.isOn ? "" : " off"}`} data-row=${row.id}>
      <legend>
        <${Name} edit=${edit} neuron=${neuron} label=${summary?.label} model=${model} place=${place} />
      </legend>
      ${fault && !isShown && html`<p class="fault">${fault.message}</p>`}
      ${isPreset
        ? html`<${PresetFields} ...${props} preset=${presetOf(edit.preset, presets)} />`
        : html`<${EditFields} ...${props} onChange=${actions.onChange} />`}
      ${!isPreset && html`<${More} ...${props} isOpen=${Boolean(faultOf("site") || faultOf("layer"))} />`}
      ${hidden.length > 0 && html`<p class="quiet">Also sent, as JSON: ${hidden.join(", ")}</p>`}
      ${isChoosing && html`<${NeuronPicker} model=${model} label="Another neuron" verb="Take" onPick=${pick} />`}
      <div class="edit-actions">
        <label><input type="checkbox" checked=${row.isOn} onChange=${actions.onSwitch} /> On</label>
        <${Action} name="up" does="Move up" isOff=${place === 0} onClick=${() => actions.onMove(-1)}>↑<//>
        <${Action} name="down" does="Move down" isOff=${place === total - 1} onClick=${() => actions.onMove(1)}>↓<//>
        <${Action} name="copy" onClick=${actions.onCopy}>Duplicate<//>
        ${!isPreset &&
        html`<button type="button" aria-expanded=${isChoosing} onClick=${() => choose(!isChoosing)}>Change</button>`}
        <${Action} name="remove" onClick=${actions.onRemove}>Remove<//>
      </div>
    </fieldset>
  </li>`;
}

function Name({ edit, neuron, label, model, place }) {
  const shown = edit.preset === undefined ? null : `Preset ${editName(edit)}`;
  return html`<span class="place">${place + 1}.</span>${" "}${shown && html`${shown}${" "}`}
    ${neuron
      ? html`<${NeuronLink} model=${model.id} ...${neuron} label=${label} />`
      : !shown && html`<span class="neuron-id">${editName(edit)}</span>`}`;
}

function Action({ name, does, isOff, onClick, children }) {
  return html`<button type="button" data-action=${name} aria-label=${does} disabled=${isOff} onClick=${onClick}>
    ${children}
  </button>`;
}

function EditFields({ edit, set, faultOf, summary, scale, hasCatalogue, onChange }) {
  const largest = summary?.max;
  const { op } = edit;
  const unit = edit.unit ?? "raw";
  const { max, ...others } = UNITS;
  const units = hasCatalogue ? UNITS : others;
  const unitWhereNone = unitFor(hasCatalogue, summary);
  const length = takesUnit(op) && unit === "raw" ? largest : 1;
  const share = op === "add" && largest > 0 ? { max: 1, raw: 1 / largest }[unit] : undefined;
  return html`<div class="edit-fields">
      <${Select} label="Do" value=${op} options=${OPS} fault=${faultOf("op")}
        onValue=${(chosen) => onChange(withOp(edit, chosen, unitWhereNone))} />
      ${takesValue(op) &&
      html`<${NumberField} label="Value" value=${edit.value} onValue=${(value) => set({ value })}
        fault=${faultOf("value")} data-action="value" />`}
      ${op === "clamp" &&
      html`<${NumberField} label="Least" value=${edit.min} onValue=${(min) => set({ min })} fault=${faultOf("min")} />
        <${NumberField} label="Most" value=${edit.max} onValue=${(max) => set({ max })} fault=${faultOf("max")} />`}
      ${takesUnit(op) &&
      html`<${Select} label="Unit" value=${unit} options=${units} fault=${faultOf("unit")}
        onValue=${(chosen) => onChange(withUnit(edit, chosen, largest))} />`}
      <${Positions} edit=${edit} set=${set} faultOf=${faultOf} />
    </div>
    ${takesValue(op) &&
    length > 0 &&
    html`<${Strength} value=${edit.value} unit=${length} share=${share} ...${share ? scale : null}
      onValue=${(value) => set({ value })} />`}
    ${takesUnit(op) && html`<p class="quiet hint">${MEANINGS[unit]?.(largest)}</p>`}`;
}

function PresetFields({ edit, set, faultOf, preset, summary, scale }) {
  const strength = edit.strength ?? 1;
  const share = preset && summary?.max > 0 ? preset.value / summary.max : undefined;
  return html`${preset &&
    html`<p class="hint">For ${preset.words.join(", ")}.${" "}
      <span class="quiet">When it was found: log-odds ${signed(preset.found.log_odds)}, cost ${" "}
        ${number(preset.found.cost)} nats per token.</span></p>`}
    <div class="edit-fields">
      <${NumberField} label="Strength" value=${strength} onValue=${(value) => set({ strength: value })}
        fault=${faultOf("strength") ?? faultOf("preset")} data-action="value" />
      <${Positions} edit=${edit} set=${set} faultOf=${faultOf} />
    </div>
    <${Strength} value=${strength} isFactor=${true} share=${share} ...${share > 0 ? scale : null}
      onValue=${(value) => set({ strength: value })} />`;
}

function Positions({ edit, set, faultOf }) {
  const { positions = "all" } = edit;
  const isRange = positions !== null && typeof positions === "object";
  const choose = (kind) => set({ positions: kind === "range" ? { start: 0 } : kind });
  const setRange = (fields) => {
    const range = Object.entries({ ...positions, ...fields }).filter(([, value]) => value !== undefined);
    set({ positions: Object.fromEntries(range) });
  };
  return html`<${Select} label="At" value=${isRange ? "range" : positions} options=${POSITIONS} onValue=${choose}
      fault=${isRange ? undefined : faultOf("positions")} />
    ${isRange &&
    html`<${NumberField} label="From token" value=${positions.start} onValue=${(start) => setRange({ start })}
        fault=${faultOf("positions.start") ?? (faultOf("positions.end") ? undefined : faultOf("positions"))} />
      <${NumberField} label="To, not included" value=${positions.end} onValue=${(end) => setRange({ end })}
        fault=${faultOf("positions.end")} />`}`;
}

/** Site and layers. */
function More({ edit, set, faultOf, topkLayers, isOpen }) {
  const edited = layersOf(edit, topkLayers);
  const isAll = edit.layer === "all";
  const [home] = useState(edited[0] ?? topkLayers[0]); // the layer to return to from all layers
  const toggle = (layer) => {
    const layers = topkLayers.filter((each) => (each === layer ? !edited.includes(each) : edited.includes(each)));
    set({ layer: layers.length === 1 ? layers[0] : layers });
  };
  return html`<details class="edit-more" open=${isOpen || undefined}>
    <summary>Layers and site</summary>
    <fieldset class=${faultOf("layer") ? "layers faulty" : "layers"}>
      <legend>Layers</legend>
      <label
        ><input type="checkbox" checked=${isAll} onChange=${() => set({ layer: isAll ? home : "all" })} /> All</label
      >
      ${topkLayers.map(
        (layer) =>
          html`<label
            ><input type="checkbox" checked=${edited.includes(layer)} disabled=${isAll}
              onChange=${() => toggle(layer)} />${" "}${layer}</label
          >`,
      )}
      ${faultOf("layer") && html`<p class="fault">${faultOf("layer")}</p>`}
    </fieldset>
    <${Select} label="Site" value=${edit.site ?? "post_topk"} options=${SITES} fault=${faultOf("site")}
      onValue=${(site) => set({ site: site === "post_topk" ? undefined : site })} />
  </details>`;
}

/** Names of the fields that the form of an intervention has a control for. */
function controlsOf(edit) {
  if (edit.preset !== undefined) return ["preset", "strength", "positions"];
  const values = takesValue(edit.op) ? ["value"] : edit.op === "clamp" ? ["min", "max"] : [];
  return ["op", "layer", "site", "positions", ...values, ...(takesUnit(edit.op) ? ["unit"] : [])];
}

function signed(value) {
  return `${value > 0 ? "+" : ""}${number(value)}`;
}
