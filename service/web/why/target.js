// What is explained, and the way back to it.

import { useSummaries } from "../core/models.js";
import { html, neuronName, number, percent } from "../core/parts.js";
import { tokenName } from "../read/tokens.js";
import { signed } from "../neurons/neuron_parts.js";

/** The targets so far, each a link back to it; nothing at the first. */
export function Trail({ trail, tokens, summaryOf, address }) {
  const summaries = useSummaries(summaryOf);
  if (trail.length < 2) return null;
  const name = ({ at, layer, neuron }) => {
    const token = at < tokens.length ? `“${tokenName(tokens[at].text)}”` : "what follows";
    if (layer === undefined) return token;
    const label = summaries?.get(neuronName(layer, neuron))?.label;
    return `${neuronName(layer, neuron)}${label ? ` ${label}` : ""} at ${token}`;
  };
  return html`<nav class="trail" aria-label="The way back">
    <ol>
      ${trail.map(
        (target, i) =>
          html`<li>
            <a href=${address(i + 1)} aria-current=${i + 1 === trail.length ? "step" : undefined}>${name(target)}</a>
          </li>`,
      )}
    </ol>
  </nav>`;
}

/** The target as the model has it, and what everything before it does together. */
export function Target({ result }) {
  const { target, sums, num_neurons: count } = result;
  const isNats = target.unit === "nats";
  const all = signed(sums.everything, number);
  return html`<section class="why-target" aria-label="What is explained">
    ${isNats
      ? html`<p>
          <strong>“${tokenName(target.token.token)}”</strong> has a probability of${" "}
          <strong>${percent(Math.exp(target.token.logprob))}</strong> there (${signed(target.token.logprob, number)} nats).
        </p>`
      : html`<p>
          <strong class="neuron-id">${neuronName(target.neuron.layer, target.neuron.neuron)}</strong>
          ${target.neuron.label && ` ${target.neuron.label}`} is active at “${tokenName(target.neuron.token)}” with${" "}
          <strong>${number(target.score)}</strong>.
        </p>`}
    <p class="quiet">
      ${number(count)} active neurons before it were ablated, each alone. Their effects add up to${" "}
      ${signed(sums.neurons, number)}${isNats && " nats"}; all of them ablated at once make ${all}: effects do not add up.
    </p>
  </section>`;
}
