// Write and steer: a prompt, a stack of interventions, and the model's text without and with them.

import { useEffect, useRef, useState } from "preact/hooks";
import { AsCode } from "./as_code.js";
import { Continuations } from "./continuations.js";
import { draftOfExample, exampleOf, isUntouched, keepDraft, newSeed, paramsOf, readDraft, requestOf } from "./draft.js";
import { isWithin, neuronOf, newRow } from "./edits.js";
import { ExampleChoice, ExampleShown, Reproduced } from "./examples.js";
import { useGeneration } from "./generation.js";
import { Interventions } from "./interventions.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { bringIntoView, ErrorNote, Heading, html, parseNeuron, useSettled } from "../core/parts.js";
import { useAddress } from "../core/router.js";
import { Prompt, Settings } from "./settings.js";
import { bestEdit } from "./strength.js";
import { questionOf, whyAddress } from "../why/question.js";

export default function Write({ params, model }) {
  const [draft, setDraft] = useDraft(params, model);
  const { run, start, stop } = useGeneration(
    (request) => JSON.stringify(request) === JSON.stringify(requestOf(draft, model)),
  );
  const isRunning = run?.state === "running";
  const change = (fields) => setDraft((old) => ({ ...old, ...fields }));
  const changeRows = (work) => setDraft((old) => ({ ...old, rows: work(old.rows) }));
  const result = useRef();
  const begin = (wanted = draft) => {
    const seeded = { ...wanted, seed: wanted.seed ?? newSeed(), example: undefined };
    setDraft(seeded);
    start(
      requestOf(seeded, model),
      seeded.rows.filter(({ isOn }) => isOn).map(({ id }) => id),
    );
    bringIntoView(result.current);
  };
  const { examples } = model.topk;
  const isOpening = run === null && isUntouched(draft);
  const example = examples.find(({ name }) => name === draft.example) ?? (isOpening ? examples[0] : undefined);
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (!isRunning) begin();
  };
  const faults = faultsOf(run);
  const isRefused = run?.state === "failed" && run.texts.every(({ text }) => text === "");
  return html`<${Heading} title="Write and steer" />
    <${Limits} model=${model} view="write" />
    ${examples.length > 0 &&
    html`<${ExampleChoice} examples=${examples} shown=${example} onChoose=${({ name }) => change({ example: name })} />`}
    ${example &&
    html`<${ExampleShown} key=${example.name} example=${example} model=${model}
      onRun=${() => begin(draftOfExample(example))} />`}
    <div class="write" onKeyDown=${onKeyDown}>
      <div class="write-form">
        <${Prompt} model=${model} value=${draft.prompt} fault=${faults.of("prompt")}
          onValue=${(prompt) => change({ prompt })} />
        <${Settings} draft=${draft} onDraft=${change} faultOf=${faults.of} />
        ${(hasNeurons(model) || draft.rows.length > 0) &&
        html`<${Interventions} model=${model} rows=${draft.rows} onRows=${changeRows} faultOf=${faults.ofRow} />`}
        <p class="run">
          <button type="button" class="primary" onClick=${isRunning ? stop : () => begin()}>
            ${isRunning ? "Stop" : "Run"}
          </button>
          <span class="quiet hint">Ctrl or ⌘ and Enter</span>
        </p>
      </div>
      <div class="write-result" ref=${result}>
        <${ErrorNote} error=${run?.error} onRetry=${run?.error && !run.error.param ? () => begin() : undefined} />
        ${run && !isRefused
          ? html`<${Continuations} run=${run} model=${model} />
              <${Reproduced} run=${run} example=${exampleOf(run.request, model)} />`
          : !isRefused && html`<${FirstSteps} model=${model} />`}
      </div>
    </div>
    ${run?.texts.every(({ trace }) => trace) &&
    html`<${TraceOfRun} run=${run} model=${model} modelParam=${params.get("model")} draft=${draft} onNeuron=${(neuron) => change({ neuron })} />`}
    <${AsCode} draft=${draft} model=${model} />`;
}

/** The draft, kept in the address; a link followed while this view is open replaces it. `steer` adds a neuron to it. */
function useDraft(params, model) {
  const [draft, setDraft] = useState(() => readDraft(params));
  const address = JSON.stringify({ model: params.get("model"), ...paramsOf(draft) });
  keepDraft(draft);
  const addNeuron = async (from) => {
    const neuron = parseNeuron(from.get("steer") ?? "");
    if (neuron === null) return;
    const row = newRow(await bestEdit(model, neuron));
    setDraft((old) => ({ ...old, rows: [...old.rows, row] }));
  };
  const take = (other) => {
    setDraft(readDraft(other));
    addNeuron(other);
  };
  useEffect(() => {
    addNeuron(params);
  }, []);
  useAddress("write", [], JSON.parse(useSettled(address)), take);
  return [draft, setDraft];
}

function FirstSteps({ model }) {
  if (!hasNeurons(model)) return html`<div class="first-steps"><p>The model's text appears here.</p></div>`;
  return html`<div class="first-steps">
    <p>The model's text appears here: without your edits, and next to it with them.</p>
    <ol>
      <li>Write the beginning of a text.</li>
      <li>Add a neuron: search for a word that it should stand for.</li>
      <li>Run. Then move its slider and run again: the seed stays the same.</li>
    </ol>
  </div>`;
}

/** The service's errors, by field of the form. */
function faultsOf(run) {
  const { param, message } = run?.error ?? {};
  const found = /^interventions\[(\d+)\]\.?(.*)$/s.exec(param ?? "");
  return {
    of: (name) => (param && isWithin(param, name) ? message : undefined),
    ofRow: (row) => (found && run.rowIds[Number(found[1])] === row.id ? { field: found[2], message } : null),
  };
}

/** The trace of the generated texts; its code is loaded with the first trace. */
function TraceOfRun({ run, model, modelParam, draft, onNeuron }) {
  const [Reader, setReader] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    import("../read/reader.js").then(
      (module) => setReader(() => module.Reader),
      () => setError({ message: "The part of the page that shows traces could not be loaded." }),
    );
  }, []);
  if (!Reader) return html`<${ErrorNote} error=${error} />`;
  const edits = run.request.interventions ?? [];
  const edited = edits.map((edit) => neuronOf(edit, model.topk.presets)).find((neuron) => neuron !== null);
  const neuron = draft.neuron === undefined ? (edited ?? null) : draft.neuron;
  const texts = run.texts.map(({ name, trace, text }, i) => {
    const why = (at) => whyAddress(modelParam, { ...questionOf(run.request, trace, i > 0), trail: [{ at }] });
    return { name, trace, text, why };
  });
  return html`<section class="trace-of-run" aria-label="Read the trace">
    <h2>Read the trace</h2>
    <${Reader} model=${model} texts=${texts} neuron=${neuron} onNeuron=${onNeuron} />
  </section>`;
}
