// The view "Read": a text, and every neuron that is active in it.

import { useState } from "preact/hooks";
import { call } from "../core/api.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { useAsked, useSummaries } from "../core/models.js";
import { Busy, ErrorNote, Heading, Warnings, html } from "../core/parts.js";
import { Reader } from "./reader.js";
import { useAddress } from "../core/router.js";
import { StandingOut, useNeuron } from "./shade_field.js";
import { firstText, TextForm, useText } from "./text_form.js";
import { Trace } from "../core/trace.js";
import { whyAddress } from "../why/question.js";

export default function Read({ model, params }) {
  return html`
    <${Heading} title="Read" />
    <${Limits} model=${model} view="read" />
    ${hasNeurons(model) && html`<${ReadText} model=${model} params=${params} />`}
  `;
}

function ReadText({ model, params }) {
  const [asked, ask] = useState(() => firstText(params));
  const [text, setText, settled] = useText(params);
  const neuron = useNeuron(params);
  const summaries = useSummaries(model);
  const { value, error, isBusy, retry, stop } = useAsked(
    (signal) => read(model, asked, signal),
    [model.id, asked],
  );
  const take = (other) => {
    setText(firstText(other));
    ask(firstText(other));
    neuron.take(other);
  };
  useAddress("read", [], { model: params.get("model"), text: settled, neuron: neuron.name }, take);
  const why = (at) => whyAddress(params.get("model"), { ids: value.trace.tokenIds, trail: [{ at }] });
  const run = (wanted) => (wanted === asked ? retry() : ask(wanted));
  return html`
    <p class="quiet">Every neuron that is active at each token of a text, in every TopK layer.</p>
    <${TextForm} model=${model} text=${text} setText=${setText} onRun=${run} what="Read" />
    <${ErrorNote} error=${error} onRetry=${retry} />
    <${Busy} isBusy=${isBusy && asked} what="Reading the text" onStop=${stop} />
    ${value &&
    !error &&
    html`<${Warnings} warnings=${value.warnings} />
      <${StandingOut}
        summaries=${summaries}
        trace=${value.trace}
        neuron=${neuron.value}
        onNeuron=${neuron.choose}
      />
      <${Reader}
        key=${value.text}
        model=${model}
        texts=${[{ name: "Text", trace: value.trace, text: value.text, why }]}
        neuron=${neuron.value}
        onNeuron=${neuron.choose}
      />`}
  `;
}

async function read(model, text, signal) {
  if (!text) return null;
  const reply = await call("v1/activations", { body: { model: model.id, input: text }, signal });
  return { text, trace: new Trace(reply.data[0].trace), warnings: reply.warnings };
}
