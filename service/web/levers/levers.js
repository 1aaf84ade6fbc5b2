// Find a lever: words or texts to make likelier, and the neurons that do it, with what each costs.

import { useRef, useState } from "preact/hooks";
import { useJob } from "../core/jobs.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { Busy, Empty, ErrorNote, Heading, html, number } from "../core/parts.js";
import { href, useAddress } from "../core/router.js";
import { Lever } from "./lever.js";
import { bodyOf, MODES, paramsOf, readFields } from "./search.js";

const EXAMPLES = {
  words: ["snow, winter, ice, cold", "please, thank, sorry", "ball, game, play, toy", "red, blue, green, yellow"].map(
    (words) => ({ title: words, words }),
  ),
  texts: [
    {
      title: "at sea or at home",
      towards:
        "The ship sailed over the sea with a fair wind.\nThe captain stood on the deck and looked at the waves.\n" +
        "The sailors hauled at the ropes until the boat came up.\nThey rowed the boat to the island.\n" +
        "The water was deep, and the ship lay at anchor.\nA great wave broke over the deck of the ship.",
      away:
        "She opened the door of the house and went in.\nThe old woman stood in the kitchen by the fire.\n" +
        "He sat at the table and ate his supper.\nThey walked up the stairs to the room.\n" +
        "The room was dark, and the door was shut.\nA small lamp stood on the table by the bed.",
    },
  ],
};

export default function Levers({ model, parts, params }) {
  const mode = parts[0] === "texts" ? "texts" : "words";
  // The last search of each mode, so that it is not lost when the other one is opened.
  const last = useRef({});
  const keep = (address) => (last.current[mode] = address);
  return html`
    <${Heading} title="Find a lever" />
    <${Limits} model=${model} view="levers" />
    ${hasNeurons(model) &&
    html`
      <p class="quiet">
        A lever is a neuron and how far to raise or lower it, so that the model writes more of what you want. It is searched
        for in the model, and measured on texts that it was not found on.
      </p>
      <nav class="modes" aria-label="Ways to search">
        ${Object.entries(MODES).map(
          ([name, { title, parts: own }]) =>
            html`<a
              href=${last.current[name] ?? href("levers", own, { model: params.get("model") })}
              aria-current=${name === mode ? "page" : undefined}
              >${title}</a
            >`,
        )}
      </nav>
      <${Search} key=${mode} mode=${mode} model=${model} params=${params} keep=${keep} />
    `}
  `;
}

function Search({ mode, model, params, keep }) {
  const [fields, setFields] = useState(() => readFields(mode, params));
  const [asked, ask] = useState(() => readFields(mode, params)); // what the list is of
  const take = (other) => {
    setFields(readFields(mode, other));
    ask(readFields(mode, other));
  };
  const address = { model: params.get("model"), ...paramsOf(mode, asked) };
  keep(href("levers", MODES[mode].parts, address));
  useAddress("levers", MODES[mode].parts, address, take);
  const job = useJob("v1/levers", bodyOf(mode, asked, model));
  const find = (wanted) => {
    if (bodyOf(mode, wanted, model) === null) return;
    setFields(wanted);
    if (JSON.stringify(wanted) === JSON.stringify(asked)) job.retry();
    else ask(wanted);
  };
  const isWhole = bodyOf(mode, fields, model) !== null;
  return html`
    <${Form} mode=${mode} fields=${fields} setFields=${setFields} isWhole=${isWhole} onFind=${() => find(fields)} />
    <p class="quiet">
      Try${" "}
      ${EXAMPLES[mode].map(
        ({ title, ...target }, i) =>
          html`${i > 0 && "; "}<button type="button" class="link" onClick=${() => find({ ...fields, ...target })}>
              ${title}</button
            >`,
      )}
    </p>
    <${ErrorNote} error=${job.error} onRetry=${job.retry} />
    <${Busy} isBusy=${job.isBusy && bodyOf(mode, asked, model) !== null} what="Searching" share=${job.share}
      onStop=${job.stop} />
    ${job.result && html`<${Found} result=${job.result} model=${model} />`}
  `;
}

function Form({ mode, fields, setFields, isWhole, onFind }) {
  const change = (name) => (event) => setFields({ ...fields, [name]: event.target.value });
  const submit = (event) => {
    event.preventDefault();
    onFind();
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onFind();
  };
  const texts = (name, title) => html`<label
    >${title}
    <textarea rows="4" value=${fields[name]} onInput=${change(name)} onKeyDown=${onKeyDown}></textarea></label
  >`;
  return html`<form class="lever-form" onSubmit=${submit}>
    ${mode === "words"
      ? html`<label class="words"
          >Words to make likelier
          <input type="text" maxlength="2000" placeholder="snow, winter, ice" value=${fields.words}
            onInput=${change("words")} /></label>`
      : html`<div class="inputs">
          ${texts("towards", "Texts to steer towards, one per line")}
          ${texts("away", "Texts to steer away from, one per line")}
        </div>`}
    <label class="prompt"
      >Prompt to try them on
      <input type="text" maxlength="2000" value=${fields.prompt} onInput=${change("prompt")} /></label>
    <label
      >Cost, at most
      <select value=${fields.max_cost} onChange=${change("max_cost")}>
        ${["0.1", "0.2", "0.3", "0.5"].map((cost) => html`<option value=${cost}>${cost} nats per token</option>`)}
      </select></label>
    <button class="primary" disabled=${!isWhole}>Find levers</button>
  </form>`;
}

function Found({ result, model }) {
  const split = (result.words ?? []).filter(({ tokens }) => tokens.length > 1);
  return html`<section aria-label="Levers">
    <div role="status"><h2>${result.message}</h2></div>
    ${split.length > 0 &&
    html`<p class="quiet">
      Counted as whole sequences: ${split.map(({ tokens }) => tokens.map((token) => token.trim()).join("·")).join(", ")}.
    </p>`}
    ${!result.texts.is_target_held_out &&
    html`<p class="note warning">
      Found and measured on the same texts: the true effect may be smaller. Give two or more on each side.
    </p>`}
    ${result.levers.length > 0
      ? html`<ol class="levers">
          ${result.levers.map(
            (lever, i) => html`<${Lever} key=${`${lever.layer}/${lever.neuron}`} lever=${lever} result=${result}
              model=${model} number=${i + 1} />`,
          )}
        </ol>`
      : html`<${Tried} tried=${result.tried} isOfWords=${result.words !== null} />`}
  </section>`;
}

/** What was tried for words or texts that nothing moves. */
function Tried({ tried, isOfWords }) {
  if (tried.length === 0) return html`<${Empty}>No neuron was worth trying.<//>`;
  return html`<p>What came nearest:</p>
    <ul>
      ${tried.slice(0, 5).map(
        (each) =>
          html`<li>
            <span class="neuron-id">${each.layer}/${each.neuron}</span> ${each.label}: ${isOfWords ? "log-odds" : "effect"}
            ${" "}${number(each.log_odds)} at ${number(each.cost)} nats per token
          </li>`,
      )}
    </ul>`;
}
