// One lever: what it does at what cost, tried on the prompt, and kept in a request.

import { useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { Busy, ErrorNote, html, hundredths, NeuronLink, neuronName, number } from "../core/parts.js";
import { Plot } from "../core/plots.js";
import { href } from "../core/router.js";
import { SideBySide } from "../core/side_by_side.js";
import { signed } from "../neurons/neuron_parts.js";

const TRIAL = { max_tokens: 48, temperature: 0.7 };

/** `result` is the reply that the lever is from; `number` its place there, from 1. */
export function Lever({ lever, result, model, number: place }) {
  const [seed, setSeed] = useState(0); // of the trial; 0: not tried
  const { continuation, intervention } = lever;
  const curve = lever.curve.toSorted((one, other) => one.cost - other.cost);
  const words = result.words?.map(({ word }) => word);
  const [effect, unit] = words ? ["log-odds", "of log-odds"] : ["effect", "per token of the texts over the others"];
  const name = neuronName(lever.layer, lever.neuron);
  const edit = { ...intervention, positions: "continuation" };
  const prompt = result.prompt?.text ?? "";
  const keep = href("write", [], { model: model.id, prompt, stack: JSON.stringify([edit]) });
  const amount = lever.value_in_max === null ? number(lever.value) : `${number(lever.value_in_max)} × its maximum`;
  return html`<li class="lever" aria-label=${`Lever ${place}: ${name}`}>
    <h3><${NeuronLink} model=${model.id} ...${lever} /></h3>
    <p>
      <strong>${signed(lever.log_odds, number)} ± ${hundredths(lever.error)} nats</strong> ${unit}, at a cost of${" "}
      <strong>${hundredths(lever.cost)} nats</strong> per token; added: ${amount}.
      ${lever.per_1000_tokens !== null &&
      html`<span class="quiet">
        ${" "}One of the words in ${number(lever.per_1000_tokens)} of 1,000 tokens
        (${number(result.per_1000_tokens)} without it).
      </span>`}
    </p>
    <div class="lever-body">
      <${Plot} title="Effect against cost" x=${curve.map((point) => point.cost)}
        names=${curve.map((point) => `${hundredths(point.cost)} at ${number(point.value)}`)}
        series=${[{ name: effect, values: curve.map((point) => point.log_odds) }]} xLabel="cost, nats per token" />
      <div>
        ${seed > 0
          ? html`<${Trial} key=${seed} prompt=${prompt} words=${words} edit=${edit} seed=${seed} model=${model} />`
          : continuation !== null &&
            html`<${SideBySide} prompt=${prompt} words=${words}
              texts=${[
                { name: "Default", text: result.prompt.continuation },
                { name: `With ${name}`, text: continuation },
              ]} />`}
        <p class="ways">
          <button type="button" onClick=${() => setSeed(seed + 1)}>${seed > 0 ? "Try another seed" : "Try it"}</button>
          <a class="button" href=${keep}>Keep it in a request</a>
        </p>
      </div>
    </div>
  </li>`;
}

/** The prompt, continued live without and with the lever. */
function Trial({ prompt, words, edit, seed, model }) {
  const body = { model: model.id, prompt, seed, ...TRIAL, interventions: [edit], compare: true };
  const { value, error, isBusy, retry, stop } = useAsked(
    (signal) => call("v1/completions", { body, signal }),
    [JSON.stringify(body)],
  );
  return html`<${Busy} isBusy=${isBusy} what="Writing" onStop=${stop} />
    <${ErrorNote} error=${error} onRetry=${retry} />
    ${value &&
    html`<${SideBySide} prompt=${prompt} words=${words}
      texts=${value.choices.map(({ variant, text }) => ({
        name: variant === "default" ? "Default" : `With ${neuronName(edit.layer, edit.neuron)}`,
        text,
      }))} />`}`;
}
