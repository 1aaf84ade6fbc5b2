// Stored examples of what one neuron does: shown before anything is run, and run live with one click.

import { useNeuronPage } from "../core/models.js";
import { html, hundredths, NeuronLink, number, ShadedText } from "../core/parts.js";
import { SideBySide } from "../core/side_by_side.js";

const NUM_PASSAGES = 3;

/** The examples' names; `shown` is the open one, or nothing. */
export function ExampleChoice({ examples, shown, onChoose }) {
  return html`<div class="example-choice" role="group" aria-label="Examples">
    <span class="quiet">Examples:</span>
    ${examples.map(
      (example) =>
        html`<button type="button" aria-pressed=${example === shown} onClick=${() => onChoose(example)}>
          ${example.name}
        </button>`,
    )}
  </div>`;
}

/** One of them: both texts as they were stored, and what the neuron is. */
export function ExampleShown({ example, model, onRun }) {
  const page = useNeuronPage(model, example);
  const { prompt, words, cost } = example;
  const strength = page?.max > 0 ? `${Number((example.value / page.max).toPrecision(2))} × its maximum` : number(example.value);
  return html`<section class="example" aria-label=${`Example: ${example.name}`}>
    <h2>What one neuron does</h2>
    <p>
      The same prompt and seed, twice. The second time, one neuron is raised wherever the model chooses a word.
    </p>
    <${SideBySide} prompt=${prompt} words=${words}
      texts=${[
        { name: "Without it", text: example.default },
        { name: `With it: ${example.name}`, text: example.steered },
      ]} />
    <div class="example-neuron">
      <p>
        Raised: <${NeuronLink} model=${model.id} ...${example} label=${page?.label?.text} />${" "}
        <span class="quiet">by ${strength}; cost ${hundredths(cost)} nats per token</span>
      </p>
      <button type="button" class="primary" onClick=${onRun}>Run it live</button>
    </div>
    ${page?.top_examples.length > 0 && html`<${Passages} page=${page} isAbsolute=${model.topk.select === "abs"} />`}
  </section>`;
}

/** Where the neuron fires by itself. */
function Passages({ page, isAbsolute }) {
  const strength = (value) => (isAbsolute ? Math.abs(value) : value);
  return html`<div class="passages">
    <h3>Where it fires by itself</h3>
    <ul>
      ${page.top_examples.slice(0, NUM_PASSAGES).map(
        ({ tokens, activations, peak }) =>
          html`<li>
            <${ShadedText} tokens=${tokens.map((token, i) => (i === 0 ? token.trimStart() : token).replaceAll("\n", " "))}
              activations=${activations.map(strength)} max=${page.max} peak=${peak} />
          </li>`,
      )}
    </ul>
  </div>`;
}

/** Whether what was written live is what was stored; nothing while it is being written, or for another request. */
export function Reproduced({ run, example }) {
  if (run.state !== "done" || !example) return null;
  const [plain, steered] = run.texts;
  const isSame = plain.text === example.default && steered.text === example.steered;
  return html`<p class="quiet">
    ${isSame
      ? `Written live just now: exactly the stored texts of the example ${example.name}.`
      : `The stored texts of the example ${example.name} differ: they were written with another precision or device.`}
  </p>`;
}
