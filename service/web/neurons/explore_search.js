// Which neurons stand for a text, or for what sets one group of texts apart from another?

import { useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { Busy, Empty, ErrorNote, html, NeuronLink, number, percent } from "../core/parts.js";
import { useFields } from "./kept_fields.js";
import { Table } from "./neuron_parts.js";

const LIMIT = 20;
const TEXTS = [
  "The little dog barked at the cat",
  "The boat sailed out to sea in the storm",
  "She wore a blue dress and a red hat",
];
const CONTRASTS = [
  {
    title: "cold or warm",
    positive: "It was a cold night.\nSnow lay on the hills and the lake was frozen.",
    negative: "It was a warm night.\nThe sun shone on the hills and the lake was blue.",
  },
  {
    title: "she or he",
    positive: "She opened the door and took off her hat.\nHer mother was waiting for her.",
    negative: "He opened the door and took off his hat.\nHis father was waiting for him.",
  },
];

export function TextSearch({ params, model, keep }) {
  return html`<${Search}
    parts=${["text"]}
    names=${["text"]}
    params=${params}
    model=${model}
    keep=${keep}
    intro="The neurons that fire on a text more than they usually do."
    task=${({ text }) => text.trim() && { text }}
    examples=${TEXTS.map((text) => ({ title: text, text }))}
    inputs=${(input) => input("text", "Text", 3)}
  />`;
}

export function ContrastSearch({ params, model, keep }) {
  const lines = (text) => text.split("\n").filter((line) => line.trim());
  const task = ({ positive, negative }) =>
    lines(positive).length > 0 &&
    lines(negative).length > 0 && { contrast: { positive: lines(positive), negative: lines(negative) } };
  return html`<${Search}
    parts=${["contrast"]}
    names=${["positive", "negative"]}
    params=${params}
    model=${model}
    keep=${keep}
    intro="The neurons that fire more on texts with something than on texts without it."
    task=${task}
    examples=${CONTRASTS}
    inputs=${(input) => [
      input("positive", "Texts with it, one per line", 4),
      input("negative", "Texts without it, one per line", 4),
    ]}
  />`;
}

/**
 * A form whose fields are `names`, and its results.
 *
 * task(fields): the request, or nothing if something is missing; inputs(input): the inputs of the form.
 */
function Search({ parts, names, params, model, keep, intro, task, examples, inputs }) {
  const onNew = (found) => ask(found);
  const [fields, setFields, address] = useFields("explore", parts, params, [...names, "layer"], onNew);
  const [asked, ask] = useState(fields);
  keep(address);
  const search = useAsked((signal) => searchFor(model, task(asked), asked.layer, signal), [asked]);
  const isWhole = Boolean(task(fields));
  const submit = (event) => {
    event.preventDefault();
    ask({ ...fields }); // repeats the search even if they are the same
  };
  const take = (found) => {
    setFields({ ...fields, ...found });
    ask({ ...fields, ...found });
  };
  const input = (name, words, rows) => html`<label
    >${words}
    <textarea
      rows=${rows}
      value=${fields[name]}
      onInput=${(event) => setFields({ ...fields, [name]: event.target.value })}
      onKeyDown=${(event) => isRun(event) && event.currentTarget.form.requestSubmit()}
    ></textarea>
  </label>`;
  return html`
    <p>${intro}</p>
    <form class="search" onSubmit=${submit}>
      <div class="inputs">${inputs(input)}</div>
      <p>
        Try${" "}
        ${examples.map(
          ({ title, ...texts }, i) =>
            html`${i > 0 && ", "}<button type="button" class="link" onClick=${() => take(texts)}>
                ${title}</button
              >`,
        )}
      </p>
      <div class="ways">
        <button class="primary" disabled=${!isWhole}>Find neurons</button>
        <span class="quiet">Ctrl+Enter</span>
        <label
          >Layer${" "}
          <select value=${fields.layer} onChange=${(event) => take({ layer: event.target.value })}>
            <option value="">all</option>
            ${model.topk.topk_layers.map((layer) => html`<option value=${String(layer)}>${layer}</option>`)}
          </select>
        </label>
      </div>
    </form>
    <${Busy} isBusy=${search.isBusy} what="Reading" onStop=${search.stop} />
    <${ErrorNote} error=${search.error} onRetry=${search.retry} />
    ${search.value && !search.error && html`<${Matches} found=${search.value} model=${model} />`}
  `;
}

function isRun(event) {
  return event.key === "Enter" && (event.ctrlKey || event.metaKey);
}

async function searchFor(model, task, layer, signal) {
  if (!task) return null;
  const layers = layer === "" ? "all" : [Number(layer)];
  return call("v1/neurons/search", { body: { model: model.id, ...task, layers, limit: LIMIT }, signal });
}

function Matches({ found, model }) {
  const { num_tokens: numTokens, num_tokens_negative: numNegative } = found;
  const isContrast = numNegative !== null;
  if (!found.data.length) return html`<${Empty}>No neuron stands out.<//>`;
  const more = isContrast ? "with it than without it" : "here than usual";
  const columns = [
    { name: "Neuron" },
    { name: "Score", isNumber: true },
    { name: isContrast ? "Active with it" : "Active here", isNumber: true },
    ...(isContrast ? [{ name: "Active without it", isNumber: true }] : []),
    { name: "Usually", isNumber: true },
  ];
  return html`
    <h2>${found.data.length} ${found.data.length === 1 ? "neuron" : "neurons"}</h2>
    <${Table} name="Neurons found" columns=${columns}>
      ${found.data.map(
        (match) =>
          html`<tr>
            <td><${NeuronLink} model=${model.id} ...${match} /></td>
            <td class="number">${number(match.score)}</td>
            <td class="number">${match.active} of ${numTokens}</td>
            ${isContrast && html`<td class="number">${match.active_negative} of ${numNegative}</td>`}
            <td class="number">${percent(match.density)}</td>
          </tr>`,
      )}
    <//>
    <p class="quiet">
      Score: how certain it is that it fires more ${more}, as a z-score of its log-odds of firing; rare tokens and strong
      firings count for more. Active: the number of tokens at which it is active. Usually: the fraction of all positions at
      which it is active.
    </p>
  `;
}
