// Choosing a neuron: by a word of its label, by a text that it should stand for, or by its name.

import { useId, useRef, useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { Busy, ErrorNote, html, neuronName, parseNeuron, percent, useSettled } from "../core/parts.js";

const NUM_FOUND = 8;

/** Calls `onPick({layer, neuron})`. `verb` is the label of the choosing button. */
export function NeuronPicker({ model, label, verb, onPick }) {
  const hasCatalogue = model.topk.has_catalogue;
  const [by, setBy] = useState("word");
  const [typed, setTyped] = useState("");
  const [text, setText] = useState(""); // the text of the last request
  const list = useRef();
  const id = useId();
  const settled = useSettled(typed.trim());
  const query = by === "text" ? text : settled;
  const { value: found, error, isBusy, retry, stop } = useAsked(
    (signal) => search(model, by, query, signal),
    [model.id, by, query],
  );
  const submit = (event) => {
    event.preventDefault();
    const named = parseNeuron(typed);
    if (named) pick(named);
    else if (by === "text") setText(typed);
    else list.current?.querySelector("button")?.focus();
  };
  const pick = ({ layer, neuron }) => {
    setTyped("");
    setText("");
    onPick({ layer, neuron });
  };
  const searchByText = () => {
    setBy("text");
    setText(typed);
  };
  const turnTo = (name) => {
    setBy(name);
    setText(""); // the field may have another text by now
  };
  const isAnswered = found?.by === by && found.query === query && query !== "";
  return html`<form role="search" class="picker" aria-label=${label} onSubmit=${submit}>
    <label for=${id}>${label}</label>
    <div class="picker-query">
      <input
        id=${id}
        type="search"
        autocomplete="off"
        data-action="search"
        placeholder=${!hasCatalogue ? "layer/index" : by === "text" ? "a text" : "a word, or layer/index"}
        value=${typed}
        onInput=${(event) => setTyped(event.target.value)}
      />
      <button>${parseNeuron(typed) ? verb : "Search"}</button>
    </div>
    ${hasCatalogue
      ? html`<fieldset class="bare">
          <legend class="unseen">Search by</legend>
          ${Object.entries({ word: "by a word of its label", text: "by a text that it stands for" }).map(
            ([name, said]) =>
              html`<label
                ><input type="radio" name=${`${id}-by`} checked=${by === name} onChange=${() => turnTo(name)} />
                ${" "}${said}</label
              >`,
          )}
        </fieldset>`
      : html`<p class="quiet">By layer and index, as in 0/17.</p>`}
    <${ErrorNote} error=${query === "" ? null : error} onRetry=${retry} />
    <${Busy} isBusy=${isBusy && query !== ""} what="Searching" onStop=${stop} />
    <div role="status" class="unseen">${isAnswered && !isBusy ? `${found.neurons.length} found` : ""}</div>
    ${isAnswered &&
    (found.neurons.length === 0
      ? html`<p class="quiet">
          ${!hasCatalogue && "Give it as layer/index, as in 0/17."}
          ${hasCatalogue && by === "text" && "No neuron stands out in this text. Try a longer one."}
          ${hasCatalogue &&
          by === "word" &&
          html`No label has this. ${" "}<button type="button" class="link" onClick=${searchByText}>Search for the
              neurons that it makes fire</button>`}
        </p>`
      : html`<ul class="found" ref=${list}>
          ${found.neurons.map(
            (each) =>
              html`<li>
                <${Found} each=${each} verb=${verb} onPick=${pick} />
              </li>`,
          )}
        </ul>`)}
  </form>`;
}

function Found({ each, verb, onPick }) {
  const isKnown = each.density !== undefined; // a typed one is unknown until it is added
  return html`<button type="button" onClick=${() => onPick(each)}>
    <span class="unseen">${verb}${" "}</span><span class="neuron-id">${neuronName(each.layer, each.neuron)}</span>${" "}
    ${isKnown &&
    html`<span class="label">${each.label ?? "no label"}</span>${" "}
      <span class="quiet">active at ${percent(each.density)}</span>`}
  </button>`;
}

/** The matches: {by, query, neurons}. */
async function search(model, by, query, signal) {
  const named = parseNeuron(query);
  if (named) return { by, query, neurons: [named] };
  if (query === "" || !model.topk.has_catalogue) return { by, query, neurons: [] };
  if (by === "text") {
    const body = { model: model.id, text: query, limit: NUM_FOUND };
    return { by, query, neurons: (await call("v1/neurons/search", { body, signal })).data };
  }
  const parameters = new URLSearchParams({ model: model.id, label: query, limit: String(NUM_FOUND) });
  return { by, query, neurons: (await call(`v1/neurons?${parameters}`, { signal })).data };
}
