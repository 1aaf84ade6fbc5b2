// What can be done in a view with a model that lacks TopK layers or a catalogue, and why the rest cannot.

import { Copy, html } from "./parts.js";

const COMMAND = "topk catalogue --model <folder of the model> --data <folder of its training data>";

/** Of a plain model: what each view still can, and what it cannot. */
const PLAIN = {
  write: "You can write with it. There is nothing to edit or trace.",
  read: "There is nothing to show of a text here. Write and steer continues texts.",
  levers: "There is no neuron to raise or lower. Write and steer continues texts.",
  why: "There is no neuron to ask about. Write and steer continues texts.",
  explore: "There is no neuron to look up. Write and steer continues texts.",
  training: "There is nothing to show of a text here. Write and steer continues texts.",
  neuron: "There is no such page. Write and steer continues texts.",
};

/** Of a model without a catalogue. */
const UNKNOWN = {
  write:
    "You can edit any neuron by its layer and index, in raw values or multiples of the k-th kept value. Searching by " +
    "words, the unit max and measured strengths need the catalogue.",
  read: "You can see and shade every active neuron of a text. Labels, and what is more active than usual, need the catalogue.",
  levers: "You can find levers for any words. Labels and multiples of a neuron's maximum need the catalogue.",
  why: "You can see which neurons a token rests on, and write without them. Their labels need the catalogue.",
  explore: "You can see active neurons in Read, and edit them in Write and steer. Lists and searches need the catalogue.",
  training: "You can read a text at each checkpoint. Labels need the catalogue.",
  neuron: "You can steer with it, and see it in a text. What it fires on and does needs the catalogue.",
};

/** Views in which nothing else is left to look at. */
const BARE = new Set(["explore", "neuron"]);

export function hasNeurons({ topk }) {
  return topk.topk_layers.length > 0;
}

/** A note for models of which a view cannot show everything; nothing for the others. `view` is its name in the address. */
export function Limits({ model, view }) {
  if (!hasNeurons(model)) {
    return html`<div class="note limits">
      <p>
        <strong>${model.id} is a plain model without TopK layers.</strong> ${PLAIN[view]} All entries of its states are in
        use, so no neuron stands out. <code>topk train --init-from</code> turns it into a TopK model.
      </p>
    </div>`;
  }
  if (model.topk.has_catalogue) return null;
  return html`<div class="note limits">
    <p>
      <strong>${model.id} has no neuron catalogue</strong>, the source of labels, statistics and examples.
      ${" "}${UNKNOWN[view]}
    </p>
    <details open=${BARE.has(view)}>
      <summary>How to build one</summary>
      <pre tabindex="0" aria-label="Command that builds a catalogue"><code>${COMMAND}</code></pre>
      <p>Then restart the service. <${Copy} text=${COMMAND} what="the command" /></p>
    </details>
  </div>`;
}
