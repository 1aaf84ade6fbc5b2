// The neurons that Explore begins with: those whose label fits and that steer well when raised.

import { useMemo } from "preact/hooks";
import { useSummaries } from "../core/models.js";
import { html, NeuronLink, neuronName } from "../core/parts.js";
import { href } from "../core/router.js";

const NUM_SHOWN = 12;
const NUM_WORDS = 6;

export function FirstLook({ model }) {
  const summaries = useSummaries(model);
  const found = useMemo(() => (summaries ? ranked(summaries, model.topk.presets) : []), [summaries, model]);
  if (found.length === 0) return null;
  return html`<section aria-labelledby="first-look" class="first-look">
    <h2 id="first-look">Neurons to begin with</h2>
    <p class="quiet">
      ${model.topk.presets.length > 0
        ? "Their labels fit, and raising them was measured to bring the words named here."
        : "Those whose labels fit best."}
    </p>
    <ul>
      ${found.map(
        ({ summary, preset }) =>
          html`<li>
            <${NeuronLink} model=${model.id} ...${summary} />
            ${preset &&
            html`<p>
              Raised: <strong>${preset.name}</strong> <span class="quiet">${preset.words.slice(0, NUM_WORDS).join(", ")}</span>
            </p>`}
            <p class="actions">
              <a href=${href("write", [], { model: model.id, steer: neuronName(summary.layer, summary.neuron) })}>Steer with it</a>
            </p>
          </li>`,
      )}
    </ul>
  </section>`;
}

/**
 * The best neurons, [{summary, preset}]. A preset's neuron counts by its label's score times the log-odds that raising
 * it was measured to give; without presets, labels alone count. What is the same neuron in several layers is there once.
 */
function ranked(summaries, presets) {
  const candidates =
    presets.length > 0
      ? presets.map((preset) => ({ preset, summary: summaries.get(neuronName(preset.layer, preset.neuron)) }))
      : [...summaries.values()].map((summary) => ({ summary }));
  const quality = ({ summary, preset }) => summary.score * (preset?.found.log_odds ?? 1);
  const taken = new Set();
  return candidates
    .filter(({ summary }) => summary?.score > 0)
    .sort((one, other) => quality(other) - quality(one))
    .filter(({ summary: { layer, neuron, also_in: alsoIn = [] } }) => {
      const isNew = !taken.has(neuronName(layer, neuron));
      for (const each of [layer, ...alsoIn]) taken.add(neuronName(each, neuron));
      return isNew;
    })
    .slice(0, NUM_SHOWN);
}
