// Which neurons changed between the default and the steered continuation.

import { useMemo, useState } from "preact/hooks";
import { ShadeButton } from "./active_neurons.js";
import { Empty, NeuronLink, html, neuronName, number } from "../core/parts.js";
import { changes, numShared } from "./trace_figures.js";

const SHOWN = 12; // neurons in each direction

/** `before` and `after` are two of the reader's texts, `lengths` their numbers of tokens. */
export function ChangedNeurons({ model, summaries, before, after, lengths, neuron, onNeuron }) {
  const [isShared, share] = useState(false);
  const shared = useMemo(() => numShared(before.trace, after.trace), [before.trace, after.trace, lengths]);
  const found = useMemo(
    () => changes(before.trace, after.trace, { end: isShared ? shared : undefined, limit: SHOWN }),
    [before.trace, after.trace, lengths, isShared],
  );
  const names = [before.name.toLowerCase(), after.name.toLowerCase()];
  const table = (title, rows) =>
    html`<${Changes} ...${{ model, summaries, title, rows, names, neuron, onNeuron }} />`;
  return html`<section>
    <h2>Neurons that changed</h2>
    <p>
      <label
        >Mean activation per token, over${" "}<select
          value=${isShared ? "shared" : "all"}
          onChange=${(event) => share(event.target.value === "shared")}
        >
          <option value="all">all tokens of each</option>
          <option value="shared">the ${shared} tokens that both begin with</option>
        </select></label
      >
    </p>
    ${found.more.length + found.less.length === 0
      ? html`<${Empty}>No neuron differs there.<//>`
      : html`<div class="changes">
          ${table(`Stronger in ${names[1]}`, found.more)} ${table(`Weaker in ${names[1]}`, found.less)}
        </div>`}
  </section>`;
}

function Changes({ model, summaries, title, rows, names, neuron, onNeuron }) {
  if (rows.length === 0) return null;
  return html`<div class="scrolled" tabindex="0" role="region" aria-label=${title}>
    <table>
      <caption>${title}</caption>
      <thead>
        <tr>
          <th>Neuron</th>
          <th class="number">${names[0]}</th>
          <th class="number">${names[1]}</th>
          <th class="number">change</th>
          <td></td>
        </tr>
      </thead>
      <tbody>
        ${rows.map(({ layer, neuron: index, before, after, difference }) => {
          const name = neuronName(layer, index);
          return html`<tr key=${name}>
            <td>
              <${NeuronLink}
                model=${model.id}
                layer=${layer}
                neuron=${index}
                label=${summaries?.get(name)?.label}
              />
            </td>
            <td class="number">${number(before)}</td>
            <td class="number">${number(after)}</td>
            <td class="number">${difference > 0 && "+"}${number(difference)}</td>
            <td>
              <${ShadeButton}
                layer=${layer}
                neuron=${index}
                isShading=${neuron?.layer === layer && neuron.neuron === index}
                onNeuron=${onNeuron}
              />
            </td>
          </tr>`;
        })}
      </tbody>
    </table>
  </div>`;
}
