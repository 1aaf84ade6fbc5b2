// Find a lever: words to make likelier, and the neurons that do it, with what each costs.

import { useState } from "preact/hooks";
import { useJob } from "../core/jobs.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { Busy, Empty, ErrorNote, Heading, html, number } from "../core/parts.js";
import { useAddress } from "../core/router.js";
import { Lever } from "./lever.js";
import { bodyOf, EMPTY, paramsOf, readFields } from "./search.js";

const EXAMPLES = ["snow, winter, ice, cold", "please, thank, sorry", "ball, game, play, toy", "red, blue, green, yellow"];

export default function Levers({ model, params }) {
  return html`
    <${Heading} title="Find a lever" />
    <${Limits} model=${model} view="levers" />
    ${hasNeurons(model) && html`<${Search} model=${model} params=${params} />`}
  `;
}

function Search({ model, params }) {
  const [fields, setFields] = useState(() => readFields(params));
  const [asked, ask] = useState(() => readFields(params)); // what the list is of
  const take = (other) => {
    setFields(readFields(other));
    ask(readFields(other));
  };
  useAddress("levers", [], { model: params.get("model"), ...paramsOf(asked) }, take);
  const job = useJob("v1/levers", bodyOf(asked, model));
  const change = (name) => (event) => setFields({ ...fields, [name]: event.target.value });
  const find = (wanted) => {
    if (bodyOf(wanted, model) === null) return;
    setFields(wanted);
    if (JSON.stringify(wanted) === JSON.stringify(asked)) job.retry();
    else ask(wanted);
  };
  const submit = (event) => {
    event.preventDefault();
    find(fields);
  };
  return html`
    <p class="quiet">
      A lever is a neuron and how far to raise or lower it, so that the model writes more of what you want. It is searched
      for in the model, and measured on texts that it was not found on.
    </p>
    <form class="lever-form" onSubmit=${submit}>
      <label class="words"
        >Words to make likelier
        <input type="text" maxlength="2000" placeholder="snow, winter, ice" value=${fields.words}
          onInput=${change("words")} /></label>
      <label class="prompt"
        >Prompt to try them on
        <input type="text" maxlength="2000" value=${fields.prompt} onInput=${change("prompt")} /></label>
      <label
        >Cost, at most
        <select value=${fields.max_cost} onChange=${change("max_cost")}>
          ${["0.1", "0.2", "0.3", "0.5"].map((cost) => html`<option value=${cost}>${cost} nats per token</option>`)}
        </select></label>
      <button class="primary" disabled=${bodyOf(fields, model) === null}>Find levers</button>
    </form>
    <p class="quiet">
      Try${" "}
      ${EXAMPLES.map(
        (words, i) =>
          html`${i > 0 && "; "}<button type="button" class="link" onClick=${() => find({ ...fields, words })}>
              ${words}</button
            >`,
      )}
    </p>
    <${ErrorNote} error=${job.error} onRetry=${job.retry} />
    <${Busy} isBusy=${job.isBusy && asked.words !== EMPTY.words} what="Searching" share=${job.share}
      onStop=${job.stop} />
    ${job.result && html`<${Found} result=${job.result} model=${model} />`}
  `;
}

function Found({ result, model }) {
  const split = (result.words ?? []).filter(({ tokens }) => tokens.length > 1);
  return html`<section aria-label="Levers">
    <div role="status"><h2>${result.message}</h2></div>
    ${split.length > 0 &&
    html`<p class="quiet">
      Counted as whole sequences: ${split.map(({ tokens }) => tokens.map((token) => token.trim()).join("·")).join(", ")}.
    </p>`}
    ${result.levers.length > 0
      ? html`<ol class="levers">
          ${result.levers.map(
            (lever, i) => html`<${Lever} key=${`${lever.layer}/${lever.neuron}`} lever=${lever} result=${result}
              model=${model} number=${i + 1} />`,
          )}
        </ol>`
      : html`<${Tried} tried=${result.tried} />`}
  </section>`;
}

/** What was tried for words that nothing moves. */
function Tried({ tried }) {
  if (tried.length === 0) return html`<${Empty}>No neuron was worth trying.<//>`;
  return html`<p>What came nearest:</p>
    <ul>
      ${tried.slice(0, 5).map(
        (each) =>
          html`<li>
            <span class="neuron-id">${each.layer}/${each.neuron}</span> ${each.label}: log-odds ${number(each.log_odds)} at
            ${" "}${number(each.cost)} nats per token
          </li>`,
      )}
    </ul>`;
}
