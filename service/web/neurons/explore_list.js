// All neurons of a model, filtered, ordered and in pages.

import { useEffect, useRef, useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { Busy, Empty, ErrorNote, html, NeuronLink, number, percent, useSettled } from "../core/parts.js";
import { FirstLook } from "./first_look.js";
import { useFields } from "./kept_fields.js";
import { classes, Table, TokenList } from "./neuron_parts.js";

const PAGE = 50;
const MORE = ["density_from", "density_to", "entropy_from", "entropy_to", "dead"];
const FIELDS = ["label", "layer", "order", ...MORE, "page"];
const WORDS = ["dog", "sea", "sad", "play"];
const BY_INDEX = "index";
// Besides the default without a name: the best matches of the words, or else the best labels.
const ORDERS = {
  [BY_INDEX]: "layer and index",
  "-density": "densest first",
  density: "sparsest first",
  "-max": "largest maximum first",
  "-mean": "largest mean first",
  token_entropy: "least token entropy first",
  "-token_entropy": "most token entropy first",
  semantic_entropy: "least semantic entropy first",
  "-semantic_entropy": "most semantic entropy first",
};
const COLUMNS = [
  { name: "Neuron" },
  { name: "Score", isNumber: true, isWide: true, meaning: "How well the label predicts its firings" },
  { name: "Density", isNumber: true, meaning: "Fraction of positions at which it is active" },
  { name: "Token entropy", isNumber: true, isWide: true, meaning: "Bits, over the tokens that it fires on" },
  { name: "Semantic entropy", isNumber: true, isWide: true, meaning: "Bits, over words of different meaning" },
  { name: "Max", isNumber: true, isWide: true, meaning: "Its largest activation" },
  { name: "Top tokens" },
];

export function NeuronList({ params, model, keep }) {
  const [fields, setFields, address] = useFields("explore", [], params, FIELDS);
  keep(address);
  const results = useRef();
  const query = useSettled(listQuery(model, fields));
  const ask = (signal) => call(`v1/neurons?${query}`, { signal });
  const { value, error, isBusy, retry, stop } = useAsked(ask, [query]);
  const change = (changes) => setFields({ ...fields, page: "", ...changes });
  const clear = () => setFields(Object.fromEntries(FIELDS.map((name) => [name, ""])));
  const turn = (page) => {
    setFields({ ...fields, page: page > 1 ? String(page) : "" });
    results.current.scrollIntoView();
  };
  const isBare = FIELDS.every((name) => !fields[name]);
  return html`
    ${isBare && html`<${FirstLook} model=${model} />`}
    ${isBare && html`<h2>All neurons</h2>`}
    <${Filters} fields=${fields} model=${model} onChange=${change} />
    <${ErrorNote} error=${error} onRetry=${retry} />
    <p role="status" class="count" ref=${results}>${value && !error && countLine(value)}</p>
    <${Busy} isBusy=${isBusy} what="Looking up neurons" onStop=${stop} />
    ${value &&
    !error &&
    (value.data.length > 0
      ? html`<${Rows} neurons=${value.data} model=${model} /><${Pager} list=${value} onTurn=${turn} />`
      : html`<${Empty}>
          Nothing here.${" "}
          <button type="button" class="link" onClick=${clear}>Show all neurons</button>
        <//>`)}
  `;
}

function Filters({ fields, model, onChange }) {
  const words = fields.label.trim();
  const hasMore = MORE.some((name) => fields[name]);
  const [isOpen, open] = useState(hasMore);
  useEffect(() => {
    if (hasMore) open(true); // and it stays open: it must not close while a field is being emptied
  }, [hasMore]);
  const set = (name) => (event) => onChange({ [name]: event.target.value });
  const range = (name, legend, max) => html`<fieldset class="range">
    <legend>${legend}</legend>
    ${["from", "to"].map(
      (end) =>
        html`<label
          >${end}${" "}<input
            type="number"
            min="0"
            max=${max}
            step="any"
            value=${fields[`${name}_${end}`]}
            onInput=${set(`${name}_${end}`)}
        /></label>`,
    )}
  </fieldset>`;
  const stay = (event) => event.preventDefault();
  return html`<form class="filters" role="search" aria-label="Neurons" onSubmit=${stay}>
    <label class="words"
      >Words in the label or among the top tokens
      <input type="search" maxlength="200" placeholder="dog" value=${fields.label} onInput=${set("label")} />
    </label>
    <label
      >Layer
      <select value=${fields.layer} onChange=${set("layer")}>
        <option value="">all</option>
        ${model.topk.topk_layers.map((layer) => html`<option value=${String(layer)}>${layer}</option>`)}
      </select>
    </label>
    <label
      >Order
      <select value=${orderOf(fields)} onChange=${set("order")}>
        <option value="">${words ? "best match first" : "best label first"}</option>
        ${Object.entries(ORDERS).map(
          ([name, title]) => (name !== BY_INDEX || !words) && html`<option value=${name}>${title}</option>`,
        )}
      </select>
    </label>
    ${!words &&
    html`<p class="try quiet">
      Try${" "}
      ${WORDS.map(
        (word, i) =>
          html`${i > 0 && ", "}<button type="button" class="link" onClick=${() => onChange({ label: word })}>
              ${word}</button
            >`,
      )}
    </p>`}
    <details open=${isOpen}>
      <summary>More filters</summary>
      <div class="more">
        ${range("density", "Density, %", 100)} ${range("entropy", "Token entropy, bits")}
        <label
          >Dead neurons${" "}
          <select value=${fields.dead} onChange=${set("dead")}>
            <option value="">with the others</option>
            <option value="false">left out</option>
            <option value="true">only these</option>
          </select>
        </label>
      </div>
    </details>
  </form>`;
}

function Rows({ neurons, model }) {
  const [, score, density, tokenEntropy, semanticEntropy, max] = COLUMNS.map(classes);
  return html`<${Table} name="Neurons" columns=${COLUMNS}>
    ${neurons.map(
      (neuron) =>
        html`<tr>
          <td><${NeuronLink} model=${model.id} ...${neuron} /></td>
          <td class=${score}>${number(neuron.score)}</td>
          <td class=${density}>${neuron.is_dead ? "dead" : percent(neuron.density)}</td>
          <td class=${tokenEntropy}>${number(neuron.token_entropy)}</td>
          <td class=${semanticEntropy}>${number(neuron.semantic_entropy)}</td>
          <td class=${max}>${number(neuron.max)}</td>
          <td class="token-list"><${TokenList} tokens=${neuron.top_tokens} /></td>
        </tr>`,
    )}
  <//>`;
}

function Pager({ list, onTurn }) {
  const page = list.offset / PAGE + 1;
  const last = Math.ceil(list.total / PAGE);
  if (last <= 1) return null;
  // Not "disabled", which would take the focus away from it on the last page.
  const button = (words, to) => {
    const isOff = to < 1 || to > last;
    const turn = () => isOff || onTurn(to);
    return html`<button type="button" aria-disabled=${isOff} onClick=${turn}>${words}</button>`;
  };
  return html`<p class="pager">
    ${button("Previous", page - 1)} <span>Page ${page} of ${last}</span> ${button("Next", page + 1)}
  </p>`;
}

function countLine({ total, offset, data }) {
  const all = `${number(total)} ${total === 1 ? "neuron" : "neurons"}`;
  if (data.length === total || !data.length) return all;
  return `${all}; ${number(offset + 1)} to ${number(offset + data.length)} here`;
}

/** The requested order; with words there is no order by index. */
function orderOf(fields) {
  return fields.order === BY_INDEX && fields.label.trim() ? "" : fields.order;
}

/** The query of /v1/neurons. */
function listQuery(model, fields) {
  const label = fields.label.trim();
  const order = orderOf(fields) || (label ? "" : "-score");
  const share = (percents) => percents && String(Number((Number(percents) / 100).toPrecision(12)));
  const page = Math.max(1, Number.parseInt(fields.page, 10) || 1);
  const query = {
    model: model.id,
    label,
    layer: fields.layer,
    min_density: share(fields.density_from),
    max_density: share(fields.density_to),
    min_token_entropy: fields.entropy_from,
    max_token_entropy: fields.entropy_to,
    is_dead: fields.dead,
    order: order === BY_INDEX ? "" : order,
    limit: PAGE,
    offset: (page - 1) * PAGE,
  };
  return String(new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "")));
}
