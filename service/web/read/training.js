// The view "Training": a text as read by the model at each checkpoint of its training.

import { useMemo, useState } from "preact/hooks";
import { hasNeurons, Limits } from "../core/limits.js";
import { useSummaries } from "../core/models.js";
import { NeuronMap } from "./neuron_map.js";
import { Busy, Empty, ErrorNote, Heading, html, number, useSettled } from "../core/parts.js";
import { Plot } from "../core/plots.js";
import { Reader } from "./reader.js";
import { statesOf, useFinalStep, useReadings } from "./readings.js";
import { useAddress } from "../core/router.js";
import { StandingOut, useNeuron } from "./shade_field.js";
import { firstText, TextForm, useText } from "./text_form.js";

export default function Training({ model, params }) {
  return html`
    <${Heading} title="Training" />
    <${Limits} model=${model} view="training" />
    ${hasNeurons(model) &&
    (model.topk.checkpoints.length > 0
      ? html`<${Checkpoints} model=${model} params=${params} />`
      : html`<${Empty}>
          ${model.id} has no training checkpoints. <code>topk ship --checkpoints 7</code> makes a model that has. Read
          shows what it reads in a text now.
        <//>`)}
  `;
}

function Checkpoints({ model, params }) {
  const states = useMemo(() => statesOf(model), [model]);
  const finalStep = useFinalStep(model);
  const [asked, ask] = useState(() => firstText(params));
  const [text, setText, settled] = useText(params);
  const [index, goTo] = useState(() => indexOf(states, params.get("step")));
  const neuron = useNeuron(params);
  const summaries = useSummaries(model);
  const resting = useSettled(index); // the slider passes over states that need not be loaded
  const readings = useReadings(states, asked, resting);
  const { value, error, isBusy, retry, stop } = readings.asked;
  const reading = readings.kept.get(index) ?? (value?.text === asked ? value : null);
  const isFinal = reading?.state.step === null;
  const take = (other) => {
    setText(firstText(other));
    ask(firstText(other));
    neuron.take(other);
    goTo(indexOf(states, other.get("step")));
  };
  const shown = {
    model: params.get("model"),
    text: settled,
    step: states[resting].step,
    neuron: neuron.name,
  };
  useAddress("training", [], shown, take);
  const run = (wanted) => (wanted === asked ? retry() : ask(wanted));
  const isStopped = asked && !isBusy && !error && resting === index && !readings.kept.has(index);
  return html`
    <p class="quiet">A text as read by the model at each checkpoint of its training.</p>
    <${TextForm} model=${model} text=${text} setText=${setText} onRun=${run} what="Read" />
    <${StepSlider} states=${states} index=${index} goTo=${goTo} />
    <${ErrorNote} error=${error} onRetry=${retry} />
    <${Busy} isBusy=${isBusy && asked} what=${`Reading the text at ${states[resting].name}`} onStop=${stop} />
    ${isStopped &&
    html`<p class="note">
      Not read at ${states[index].name}. <button type="button" onClick=${retry}>Read it</button>
    </p>`}
    ${reading &&
    html`
      <${Losses} states=${states} finalStep=${finalStep} readings=${readings} index=${index} goTo=${goTo} />
      <h2>${isFinal ? "As the final model sees it" : `As the model saw it at ${reading.state.name}`}</h2>
      ${isFinal &&
      html`<${StandingOut}
        summaries=${summaries}
        trace=${reading.trace}
        neuron=${neuron.value}
        onNeuron=${neuron.choose}
      />`}
      <${Reader}
        key=${reading.text}
        model=${model}
        texts=${[{ name: reading.state.name, trace: reading.trace, text: reading.text }]}
        neuron=${neuron.value}
        onNeuron=${neuron.choose}
      >
        ${neuron.value && html`<${StepMap} readings=${readings} neuron=${neuron} />`}
      <//>
    `}
  `;
}

/** The index of the state whose step is in the address; that of the final one if there is no such state. */
function indexOf(states, step) {
  const found = states.findIndex((state) => String(state.step) === step);
  return found < 0 ? states.length - 1 : found;
}

function StepSlider({ states, index, goTo }) {
  return html`<div class="step-slider">
    <label for="step">Checkpoint</label>
    <input
      id="step"
      type="range"
      min="0"
      max=${states.length - 1}
      step="1"
      value=${index}
      aria-valuetext=${states[index].name}
      onInput=${(event) => goTo(Number(event.target.value))}
    />
    <strong>${states[index].name}</strong>
    <span class="quiet">${index + 1} of ${states.length}</span>
  </div>`;
}

/** The text's loss at every state that has read it. */
function Losses({ states, finalStep, readings, index, goTo }) {
  const { kept, all, runAll } = readings;
  const isWhole = kept.size === states.length;
  const known = states
    .map(({ step }, i) => ({ step: step ?? finalStep, loss: kept.get(i)?.loss }))
    .filter(({ step, loss }) => step > 0 && loss);
  return html`<section>
    <h2>Loss of this text</h2>
    <div class="losses">
      <table>
        <thead>
          <tr>
            <th>Checkpoint</th>
            <th class="number">nats per token</th>
          </tr>
        </thead>
        <tbody>
          ${states.map(
            ({ name }, i) =>
              html`<tr class=${i === index ? "chosen" : undefined}>
                <td>
                  <button type="button" class="link" aria-current=${i === index} onClick=${() => goTo(i)}>
                    ${name}
                  </button>
                </td>
                <td class="number">${number(kept.get(i)?.loss)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
      ${known.length > 1 &&
      html`<${Plot}
        title="Loss by step"
        x=${known.map(({ step }) => step)}
        series=${[{ name: "nats per token", values: known.map(({ loss }) => loss) }]}
        xLabel="step"
        logX=${true}
        hasTable=${false}
      />`}
    </div>
    <${ErrorNote} error=${all?.error} onRetry=${runAll} />
    ${!isWhole &&
    !all?.controller &&
    html`<button type="button" onClick=${runAll}>Run over all checkpoints</button>`}
    <${Busy}
      isBusy=${all?.controller}
      what=${`Reading at ${states[all?.done ?? 0]?.name ?? "all"}`}
      share=${all && all.done / states.length}
      onStop=${() => all.controller.abort()}
    />
  </section>`;
}

/** The chosen neuron's activation at each token, by step. */
function StepMap({ readings, neuron }) {
  const { layer, neuron: index } = neuron.value;
  const title = `Neuron ${neuron.name} by checkpoint and token`;
  const found = [...readings.kept].sort(([a], [b]) => a - b).map(([, reading]) => reading);
  const { rows, tokens } = useMemo(() => {
    const rows = found.map(({ state, trace }) => {
      const place = trace.layers.indexOf(layer);
      const value = (_, token) => (place < 0 ? 0 : trace.value(token, place, index));
      return { name: state.name, values: trace.tokens.map(value) };
    });
    return { rows, tokens: found[0]?.trace.tokens ?? [] };
  }, [readings.kept, readings.kept.size, layer, index]);
  return html`<section>
    <h2>${neuron.name} over training</h2>
    ${found.length > 1
      ? html`<${NeuronMap} title=${title} rows=${rows} tokens=${tokens} />`
      : html`<${Empty}>Run over all checkpoints to see when it became active where it is.<//>`}
  </section>`;
}
