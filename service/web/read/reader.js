// Reading traces: texts shaded by a neuron, the neurons active at a token, one neuron over all layers,
// and what changed.

import { useMemo, useRef, useState } from "preact/hooks";
import { ActiveNeurons } from "./active_neurons.js";
import { ChangedNeurons } from "./changed_neurons.js";
import { useSummaries } from "../core/models.js";
import { NeuronMap } from "./neuron_map.js";
import { html, neuronName, number, useSettled } from "../core/parts.js";
import { ShadeField } from "./shade_field.js";
import { Tokens, tokenElement } from "./tokens.js";

const SETTLED_MS = 400; // a stream's maps and figures are drawn once it pauses

/**
 * `texts` are one or two, [{name, trace, text, why}], whose traces may still grow; `neuron`, {layer, neuron} or
 * null, shades them, and `onNeuron` asks its owner for another. `model` is a card; `children` are shown below the
 * other figures.
 */
export function Reader({ model, texts, neuron, onNeuron, children }) {
  const root = useRef();
  const summaries = useSummaries(model);
  const [chosen, choose] = useState(null); // {text, token}: indices
  const lengths = texts.map(({ trace }) => trace.tokens.length).join();
  const settled = useSettled(lengths, SETTLED_MS);
  const traces = texts.map(({ trace }) => trace);
  const max = useMemo(() => strongest(traces, neuron), [...traces, lengths, neuron?.layer, neuron?.neuron]);
  const open = chosen && chosen.token < texts[chosen.text]?.trace.tokens.length ? chosen : null;
  const close = () => {
    choose(null);
    if (open) tokenElement(root.current.querySelectorAll(".tokens")[open.text], open.token)?.focus();
  };
  return html`<div class="reader" ref=${root}>
    <${ShadeField} model=${model} summaries=${summaries} neuron=${neuron} onNeuron=${onNeuron} />
    <${Legend} neuron=${neuron} max=${max} texts=${texts} />
    <div class="reading">
      <div class="texts">
        ${texts.map(
          ({ name, trace }, i) =>
            html`<div key=${name}>
              ${texts.length > 1 && html`<p class="text-name">${name}</p>`}
              <${Tokens}
                name=${name}
                trace=${trace}
                place=${placeOf(trace, neuron)}
                neuron=${placeOf(trace, neuron) === null ? null : neuron.neuron}
                max=${max}
                chosen=${open?.text === i ? open.token : null}
                onChoose=${(token) => choose({ text: i, token })}
                onClose=${close}
              />
            </div>`,
        )}
      </div>
      <${ActiveNeurons}
        model=${model}
        summaries=${summaries}
        text=${open && texts[open.text]}
        token=${open?.token}
        neuron=${neuron}
        onNeuron=${onNeuron}
        onClose=${close}
      />
      <div class="reader-figures">
        ${neuron &&
        html`<section>
          <h2>${neuronName(neuron.layer, neuron.neuron)} in every layer</h2>
          ${texts.map(
            ({ name, trace }, i) =>
              html`<${LayerMap}
                key=${name}
                name=${texts.length > 1 ? name : ""}
                trace=${trace}
                lengths=${settled}
                neuron=${neuron.neuron}
                chosen=${open?.text === i ? open.token : null}
                onChoose=${(token) => choose({ text: i, token })}
              />`,
          )}
        </section>`}
        ${texts.length > 1 &&
        html`<${ChangedNeurons}
          model=${model}
          summaries=${summaries}
          before=${texts[0]}
          after=${texts[1]}
          lengths=${settled}
          neuron=${neuron}
          onNeuron=${onNeuron}
        />`}
        ${children}
      </div>
    </div>
  </div>`;
}

/** The legend of the shades. */
function Legend({ neuron, max, texts }) {
  const isGenerated = texts.some(({ trace }) => trace.phases.at(-1) === "generated");
  return html`<p class="reader-legend quiet">
    ${neuron &&
    max > 0 &&
    html`<span><span class="ramp" aria-hidden="true"></span> 0 to ${number(max)}. </span>`}
    ${neuron && max === 0 && html`<span>It is not active at any token here. </span>`}
    ${isGenerated &&
    html`<span>The model's text begins at the <span class="first-generated">bar</span>. </span>`}
    <span>Click a token, or use the arrow keys and Enter, for its active neurons.</span>
  </p>`;
}

/** One neuron index in all layers of a trace; `lengths` changes when the trace has grown and settled. */
function LayerMap({ name, trace, lengths, neuron, chosen, onChoose }) {
  const { tokens, rows } = useMemo(() => {
    const tokens = trace.tokens.slice();
    const rows = trace.layers.map((layer, place) => ({
      name: `layer ${layer}`,
      values: tokens.map((_, token) => trace.value(token, place, neuron)),
    }));
    return { tokens, rows };
  }, [trace, lengths, neuron]);
  const title = `Neuron ${neuron} by layer and token${name && `, ${name.toLowerCase()}`}`;
  return html`${name && html`<p class="text-name">${name}</p>`}
    <${NeuronMap} title=${title} rows=${rows} tokens=${tokens} chosen=${chosen} onChoose=${onChoose} />`;
}

/** The place of the neuron's layer in the trace; null if there is none. */
function placeOf(trace, neuron) {
  const place = neuron ? trace.layers.indexOf(neuron.layer) : -1;
  return place < 0 ? null : place;
}

/** The largest activation of the neuron in any of the traces. */
function strongest(traces, neuron) {
  let max = 0;
  for (const trace of traces) {
    const place = placeOf(trace, neuron);
    if (place === null) continue;
    for (let token = 0; token < trace.tokens.length; token++) {
      max = Math.max(max, Math.abs(trace.value(token, place, neuron.neuron)));
    }
  }
  return max;
}
