// The neurons that are active at one token: all that the next block of the model reads.

import { Empty, NeuronLink, html, neuronName, number } from "../core/parts.js";
import { tokenName } from "./tokens.js";

/** `text` is one of the reader's; `neuron` the shading one. */
export function ActiveNeurons({ model, summaries, text, token, neuron, onNeuron, onClose }) {
  if (!text) {
    return html`<div class="active-neurons">
      <${Empty}>Choose a token to see the neurons active at it.<//>
    </div>`;
  }
  const { trace, name } = text;
  const title = `Active at “${tokenName(trace.tokens[token])}”`;
  const close = (event) => {
    if (event.key === "Escape") onClose();
  };
  return html`<section class="active-neurons open" aria-label=${title} tabindex="0" onKeyDown=${close}>
    <div class="panel-head">
      <h2>${title}</h2>
      <button type="button" onClick=${onClose}>Close</button>
    </div>
    <p class="quiet">${name}, ${trace.phases[token]}, position ${token}</p>
    ${text.why && token > 0 && html`<p><a class="button" href=${text.why(token)}>Why this token?</a></p>`}
    ${trace.layers.map(
      (layer, place) =>
        html`<${Layer}
          key=${layer}
          model=${model}
          summaries=${summaries}
          layer=${layer}
          active=${trace.at(token, place)}
          neuron=${neuron}
          onNeuron=${onNeuron}
        />`,
    )}
  </section>`;
}

function Layer({ model, summaries, layer, active, neuron, onNeuron }) {
  const entries = [...active].sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
  const max = Math.abs(entries[0]?.[1] ?? 0);
  return html`<h3 id=${`active-${layer}`}>
      Layer ${layer} <span class="quiet">${entries.length} active</span>
    </h3>
    <ol class="entries" aria-labelledby=${`active-${layer}`}>
      ${entries.map(([index, value]) => {
        const isShading = neuron?.layer === layer && neuron.neuron === index;
        return html`<li key=${index}>
          <span class="value"
            ><span class="bar" style=${{ inlineSize: `${(100 * Math.abs(value)) / max}%` }}></span
            ><span>${number(value)}</span></span
          >
          <${NeuronLink}
            model=${model.id}
            layer=${layer}
            neuron=${index}
            label=${summaries?.get(neuronName(layer, index))?.label}
          />
          <${ShadeButton} layer=${layer} neuron=${index} isShading=${isShading} onNeuron=${onNeuron} />
        </li>`;
      })}
    </ol>`;
}

/** Shades by a neuron, or stops that. */
export function ShadeButton({ layer, neuron, isShading, onNeuron }) {
  return html`<button
    type="button"
    class="shade-by"
    aria-label=${`Shade by ${neuronName(layer, neuron)}`}
    aria-pressed=${isShading}
    onClick=${() => onNeuron(isShading ? null : { layer, neuron })}
  >
    Shade
  </button>`;
}
