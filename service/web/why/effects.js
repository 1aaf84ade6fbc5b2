// The neurons that a target rests on, the strongest effects first.

import { Empty, html, NeuronLink, neuronName, number } from "../core/parts.js";
import { tokenName } from "../read/tokens.js";
import { signed } from "../neurons/neuron_parts.js";

const NUM_SHOWN = 12;

/** `without` is the neuron that is left out now, or null; the addresses are of asking about one, and of leaving it out. */
export function Effects({ result, model, without, whyAddress, withoutAddress }) {
  const neurons = onceEach(result.neurons).slice(0, NUM_SHOWN);
  const most = Math.max(...neurons.map(({ effect }) => Math.abs(effect)));
  const isNats = result.target.unit === "nats";
  if (neurons.length === 0 || most === 0) return html`<${Empty}>No neuron before it has an effect on it.<//>`;
  return html`<section aria-labelledby="effects-list">
    <h2 id="effects-list">It rests on</h2>
    <p class="quiet">
      Effect: by how much its ${isNats ? "log-probability" : "activation"} falls without this one neuron at this one token.
      Below 0, the neuron held it down.
    </p>
    <ol class="why-effects">
      ${neurons.map((each) => {
        const place = { at: each.position, layer: each.layer, neuron: each.neuron };
        const name = `${neuronName(each.layer, each.neuron)} at ${tokenName(each.token)}`;
        const last = Math.max(each.layer, ...each.also); // where most of what is before it can hold it up
        const isOut =
          without?.at === place.at && without.layer === place.layer && without.neuron === place.neuron;
        return html`<li class=${isOut ? "chosen" : undefined}>
          <span class="value"
            ><span
              class=${each.effect > 0 ? "bar" : "bar cold"}
              style=${{ inlineSize: `${(100 * Math.abs(each.effect)) / most}%` }}
            ></span
            ><span>${signed(each.effect, number)}</span></span
          >
          <span class="who">
            <${NeuronLink} model=${model.id} layer=${each.layer} neuron=${each.neuron} label=${each.label} />
            <span class="quiet">
              ${" "}at “${tokenName(each.token)}”${each.also.length > 0 && `, also in ${layersOf(each.also)}`}
            </span>
          </span>
          <span class="acts">
            <a class="button" href=${withoutAddress(place)} aria-label=${`Write without ${name}`}>Without it</a>
            ${last > model.topk.topk_layers[0] &&
            html`<a class="button" href=${whyAddress({ ...place, layer: last })} aria-label=${`What holds ${name} up?`}>Why?</a>`}
          </span>
        </li>`;
      })}
    </ol>
  </section>`;
}

function layersOf(layers) {
  const sorted = layers.toSorted((one, other) => one - other);
  return `${sorted.length > 1 ? "layers" : "layer"} ${sorted.join(", ")}`;
}

/** The effects, a neuron that is active in several layers at one token once: the layers of the others as `also`. */
function onceEach(neurons) {
  const found = new Map();
  for (const each of neurons) {
    const key = `${each.neuron}@${each.position}`;
    if (found.has(key)) found.get(key).also.push(each.layer);
    else found.set(key, { ...each, also: [] });
  }
  return [...found.values()];
}
