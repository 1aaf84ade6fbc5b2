// A neuron's page: what it fires on, its effect, and how it formed.

import { call } from "../core/api.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { useAsked } from "../core/models.js";
import { Busy, Empty, ErrorNote, Heading, html, neuronName } from "../core/parts.js";
import { go, href } from "../core/router.js";
import { History, Layers } from "./neuron_history.js";
import { Effects, Examples, Figures, LabelNote, Related, Strength, TopTokens } from "./neuron_sections.js";
import { Raising } from "./raising.js";

/** `#/neuron/{layer}/{neuron}`, with a `step` for the neuron as it was at that checkpoint. */
export default function NeuronView({ parts, params, model }) {
  if (parts.length !== 2 || !parts.every((part) => /^\d+$/.test(part))) {
    return html`<${Heading} title="No such neuron" />
      <${Empty}>
        A neuron’s address is its layer and its index, as <code>#/neuron/0/41</code>.${" "}
        <a href=${href("explore", [], { model: params.get("model") })}>Explore</a> lists them.
      <//>`;
  }
  if (!hasNeurons(model)) return html`<${Heading} title="No neurons" /><${Limits} model=${model} view="neuron" />`;
  const [layer, neuron] = parts.map(Number);
  const own = { layer, neuron, step: params.get("step") };
  return html`<${Known} ...${own} model=${model} modelParam=${params.get("model")} />`;
}

function Known({ layer, neuron, step, model, modelParam }) {
  const hasCatalogue = model.topk.has_catalogue;
  const asked = step === null ? model.id : `${model.id}@step-${step}`;
  const ask = (rest, id) => async (signal) => {
    if (!hasCatalogue) return null;
    return call(`v1/neurons/${layer}/${neuron}${rest}?${new URLSearchParams({ model: id })}`, { signal });
  };
  const found = useAsked(ask("", asked), [asked, layer, neuron]);
  const past = useAsked(ask("/history", model.id), [model.id, layer, neuron]);
  const isOf = (value) => value?.layer === layer && value.neuron === neuron;
  const page = isOf(found.value) && found.value.model === asked && !found.error ? found.value : null;
  const history = isOf(past.value) && !past.error ? past.value : null;
  const name = neuronName(layer, neuron);
  const label = page?.label?.text;
  return html`
    <${Heading} title=${label ? `${name} ${label}` : `Neuron ${name}`}>
      ${!label && "Neuron "}<span class="neuron-id">${name}</span>${label && ` ${label}`}
    <//>
    <${Ways} ...${{ layer, neuron, step, model, modelParam, history }} />
    <${Limits} model=${model} view="neuron" />
    <${Busy} isBusy=${found.isBusy && !page} what=${`Looking up ${name}`} onStop=${found.stop} />
    <${ErrorNote} error=${found.error} onRetry=${found.retry} />
    ${page && html`<${Page} page=${page} model=${model} />`}
    ${hasCatalogue &&
    html`<${Busy} isBusy=${past.isBusy && !history} what="Looking up its history" onStop=${past.stop} />
      ${!found.error && html`<${ErrorNote} error=${past.error} onRetry=${past.retry} />`}`}
    ${history &&
    html`<${History} history=${history} modelParam=${modelParam} />
      <${Layers} history=${history} model=${model} />`}
  `;
}

/** Actions, its neighbours, and the checkpoint that is shown. */
function Ways({ layer, neuron, step, model, modelParam, history }) {
  const name = neuronName(layer, neuron);
  const place = (other, at) => href("neuron", [layer, other], { model: modelParam, step: at });
  const steps = history ? history.checkpoints.slice(0, -1).map((stage) => String(stage.step)) : [];
  const choices = step === null || steps.includes(step) ? steps : [step, ...steps];
  const choose = (event) => go(place(neuron, event.target.value));
  const beside = (which, other) =>
    html`<a href=${place(other, step)} aria-label=${`${which} neuron, ${neuronName(layer, other)}`}
      >${which === "Next" ? "" : "← "}${neuronName(layer, other)}${which === "Next" ? " →" : ""}</a
    >`;
  return html`<div class="ways">
    <a class="button" href=${href("write", [], { model: modelParam, steer: name })}>Steer with it</a>
    <a class="button" href=${href("read", [], { model: modelParam, neuron: name })}>See it in a text</a>
    ${choices.length > 0 &&
    html`<label
      >Checkpoint${" "}
      <select value=${step ?? ""} onChange=${choose}>
        <option value="">final</option>
        ${choices.toReversed().map((choice) => html`<option value=${choice}>step ${choice}</option>`)}
      </select>
    </label>`}
    <span class="neighbours">
      ${neuron > 0 && beside("Previous", neuron - 1)}
      ${neuron + 1 < model.topk.hidden_size && beside("Next", neuron + 1)}
    </span>
  </div>`;
}

function Page({ page, model }) {
  const step = page.checkpoint?.replace("-", " ");
  const when = step && `This is its state at ${step} of training.`;
  if (page.is_dead) {
    return html`<p class="note">
        This neuron is dead: it was never active in the texts of the catalogue, so nothing is
        known about what it fires on. An intervention can still force it. ${when}
      </p>
      <${Effects} logit=${page.logit_effect} ablation=${page.ablation_effect} />`;
  }
  return html`
    ${when && html`<p class="note">${when}</p>`}
    <${LabelNote} label=${page.label} />
    <${Raising} steering=${page.steering} />
    <${Figures} page=${page} />
    <div class="columns wide-first">
      <${Examples} page=${page} isAbsolute=${model.topk.select === "abs"} />
      <div>
        <${Strength} page=${page} />
        <${TopTokens} tokens=${page.top_tokens} />
      </div>
    </div>
    <${Effects} logit=${page.logit_effect} ablation=${page.ablation_effect} />
    <${Related} model=${model} related=${page.related} />
  `;
}
