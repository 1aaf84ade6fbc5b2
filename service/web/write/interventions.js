// The stack of interventions: add, order, disable, remove, or edit all of them as JSON.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { EditRow } from "./edit_row.js";
import { editName, newRow, presetEdit, presetName, readStack, stackOf } from "./edits.js";
import { useSummaries } from "../core/models.js";
import { NeuronPicker } from "./neuron_picker.js";
import { bestEdit } from "./strength.js";
import { Empty, html, number } from "../core/parts.js";

/** `onRows` is given a function from the rows to the new ones; `faultOf(row)` is the service's error about a row. */
export function Interventions({ model, rows, onRows, faultOf }) {
  const summaries = useSummaries(rows.length > 0 ? model : null);
  const box = useRef();
  const wanted = useRef(null); // the element to focus once the rows are drawn
  const [said, say] = useState("");
  // At once, and only for new rows: an effect that an earlier drawing left pending would focus what is about to move.
  useLayoutEffect(() => {
    if (wanted.current) focusOn(box.current, wanted.current);
    wanted.current = null;
  }, [rows]);
  const add = (edit) => {
    const row = newRow(edit);
    wanted.current = { id: row.id, action: "value" };
    say(`${editName(edit)} added`);
    onRows((old) => [...old, row]);
  };
  const actionsOf = (row, place) => ({
    onChange: (edit) => onRows((old) => old.map((each) => (each.id === row.id ? { ...each, edit } : each))),
    onSwitch: () => onRows((old) => old.map((each) => (each.id === row.id ? { ...each, isOn: !each.isOn } : each))),
    onMove: (by) => {
      wanted.current = { id: row.id, action: by < 0 ? "up" : "down" };
      say(`${editName(row.edit)} is now number ${place + by + 1} of ${rows.length}`);
      onRows((old) => moved(old, row.id, by));
    },
    onCopy: () => {
      const copy = newRow(structuredClone(row.edit), row.isOn);
      wanted.current = { id: copy.id, action: "value" };
      onRows((old) => old.flatMap((each) => (each.id === row.id ? [each, copy] : [each])));
    },
    onRemove: () => {
      const next = rows[place + 1] ?? rows[place - 1];
      wanted.current = { id: next?.id, action: "remove" };
      say(`${editName(row.edit)} removed`);
      onRows((old) => old.filter((each) => each.id !== row.id));
    },
  });
  const addNeuron = (neuron) => bestEdit(model, neuron).then(add);
  return html`<section class="stack" aria-label="Interventions" ref=${box}>
    <h2>Interventions</h2>
    ${rows.length === 0 &&
    html`<${Empty}>Nothing is edited: Run writes the plain continuation. Add a neuron to see what it does.<//>`}
    <ol class="edits">
      ${rows.map(
        (row, place) =>
          html`<${EditRow} key=${row.id} row=${row} place=${place} total=${rows.length} model=${model}
            summaries=${summaries} fault=${faultOf(row)} actions=${actionsOf(row, place)} />`,
      )}
    </ol>
    <${NeuronPicker} model=${model} label="Add a neuron" verb="Add" onPick=${addNeuron} />
    <${Presets} presets=${model.topk.presets} onAdd=${add} />
    <${AsJson} rows=${rows} onRows=${onRows} />
    <p role="status" class="unseen">${said}</p>
  </section>`;
}

function Presets({ presets, onAdd }) {
  if (presets.length === 0) return null;
  return html`<details class="presets">
    <summary>Add a preset (${presets.length})</summary>
    <ul class="found">
      ${presets.map(
        (preset) => html`<li>
          <button type="button" onClick=${() => onAdd(presetEdit(preset))}>
            <span class="unseen">Add${" "}</span><span class="neuron-id">${presetName(preset)}</span>${" "}
            <span class="label">${preset.words.join(", ")}</span>${" "}
            <span class="quiet">log-odds ${number(preset.found.log_odds)}, cost ${number(preset.found.cost)}</span>
          </button>
        </li>`,
      )}
    </ul>
    <p class="quiet hint">
      Measured when the preset was found: how much more probable the words become, and the cost in nats per token.
    </p>
  </details>`;
}

function AsJson({ rows, onRows }) {
  const [typed, type] = useState(null); // null: the content of the form
  const [error, setError] = useState("");
  const use = () => {
    try {
      const read = readStack(typed);
      onRows(() => read);
      type(null);
      setError("");
    } catch (problem) {
      setError(problem.message);
    }
  };
  const discard = () => {
    type(null);
    setError("");
  };
  return html`<details class="as-json">
    <summary>Edit as JSON</summary>
    <label class="unseen" for="stack-json">Interventions as JSON</label>
    <textarea
      id="stack-json"
      class="figure"
      rows="8"
      spellcheck=${false}
      aria-invalid=${error ? "true" : undefined}
      aria-describedby="stack-json-hint"
      value=${typed ?? shown(rows)}
      onInput=${(event) => type(event.target.value)}
    ></textarea>
    ${error && html`<p class="fault" role="alert">${error}</p>`}
    <p class="quiet hint" id="stack-json-hint">
      As the API takes them; every field is kept and sent. <code>"off": true</code> keeps one without sending it.
    </p>
    ${typed !== null &&
    html`<button type="button" onClick=${use}>Use it</button>${" "}
      <button type="button" onClick=${discard}>Discard</button>`}
  </details>`;
}

/** One intervention per line. */
function shown(rows) {
  const lines = stackOf(rows).map((edit) => `  ${JSON.stringify(edit)}`);
  return lines.length > 0 ? `[\n${lines.join(",\n")}\n]` : "[]";
}

function moved(rows, id, by) {
  const from = rows.findIndex((row) => row.id === id);
  const others = rows.filter((row) => row.id !== id);
  return [...others.slice(0, from + by), rows[from], ...others.slice(from + by)];
}

/** Moves the focus to an action of a row, or, if it is gone or disabled, to the nearest one. */
function focusOn(box, { id, action }) {
  const row = box.querySelector(`[data-row="${id}"]`);
  const target = row?.querySelector(`[data-action="${action}"]:not(:disabled)`);
  const other = row?.querySelector("[data-action]:not(:disabled, [data-action='value'])"); // "up" is disabled at the top
  (target ?? other ?? box.querySelector('[data-action="search"]')).focus();
}
