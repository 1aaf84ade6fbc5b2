// The generated texts: default and steered side by side, the effects of the edits, and how generation ended.

import { editName, neuronOf } from "./edits.js";
import { numGenerated, sharedLength, sharedTokens } from "./generation.js";
import { useSummaries } from "../core/models.js";
import { html, NeuronLink, neuronName, number, Warnings } from "../core/parts.js";

const SHOWN_PROMPT = 160; // characters, the last of a longer one
const ENDINGS = { length: "reached max_tokens", stop: "ended by itself, or at a stop string" };

export function Continuations({ run, model }) {
  const [plain, steered] = run.texts;
  return html`<div class="continuations">
      <${Continuation} text=${plain} run=${run} shared=${null} />
      ${steered && html`<${Continuation} text=${steered} run=${run} shared=${shared(plain, steered)} />`}
    </div>
    <${Progress} run=${run} />
    <${Warnings} warnings=${run.warnings} />
    ${steered?.receipts.length > 0 && html`<${Receipts} run=${run} receipts=${steered.receipts} model=${model} />`}`;
}

function Continuation({ text, run, shared }) {
  const { prompt } = run.request;
  const end = shared?.isDifferent ? shared.length : text.text.length;
  const count = numGenerated(text);
  const figures = [
    count === null ? null : tokens(count),
    text.finishReason && ENDINGS[text.finishReason],
    shared?.said,
  ].filter(Boolean);
  const isBusy = run.state === "running" && !text.finishReason;
  const ahead = prompt.length > SHOWN_PROMPT ? `…${[...prompt].slice(-SHOWN_PROMPT).join("")}` : prompt;
  return html`<section class="continuation" aria-label=${text.name} aria-busy=${isBusy}>
    <h2>${text.name}</h2>
    <p class="written">
      <span class="quiet">${ahead}</span>
      ${text.text.slice(0, end)}
      ${end < text.text.length && html`<mark>${text.text.slice(end)}</mark>`}
    </p>
    <p class="quiet hint">${figures.join(" · ")}${figures.length === 0 && "…"}</p>
  </section>`;
}

/** Where the steered text leaves the default one: {isDifferent, length, said}. */
function shared(plain, steered) {
  const length = sharedLength(plain, steered);
  const isWhole = plain.finishReason !== null && steered.finishReason !== null;
  const isBehind = plain.text.length <= length && plain.finishReason === null; // the rest may be the same
  const isDifferent = steered.text.length > length && !isBehind && !plain.text.startsWith(steered.text);
  if (!isDifferent) {
    return { isDifferent, length, said: isWhole && plain.text === steered.text ? "as the default" : null };
  }
  const isCounted = plain.trace && steered.trace;
  const said = isCounted ? `differs after ${tokens(sharedTokens(plain.trace, steered.trace).count)}` : null;
  return { isDifferent, length, said };
}

function Progress({ run }) {
  const counts = run.texts.map(numGenerated);
  const wanted = run.texts.length * run.request.max_tokens;
  const isCounted = !counts.includes(null);
  const numTokens = run.usage?.completion_tokens ?? (isCounted ? counts.reduce((sum, count) => sum + count, 0) : null);
  return html`${run.state === "running" &&
    html`<progress class="written-share" aria-label="Written" max="1"
      value=${isCounted && wanted > 0 ? numTokens / wanted : undefined}></progress>`}
    <p role="status" class="quiet outcome">${outcome(run, numTokens)}</p>`;
}

function outcome({ state, seconds }, numTokens) {
  if (state === "running") return "Writing …";
  const tokens = numTokens === null ? "" : ` ${numTokens} tokens in ${seconds.toFixed(1)} s`;
  if (state === "done") return `Done:${tokens}, ${number(numTokens / seconds)} a second.`;
  return state === "stopped" ? `Stopped${tokens && ` after${tokens}`}.` : "Not finished.";
}

function Receipts({ run, receipts, model }) {
  const summaries = useSummaries(model);
  return html`<section class="receipts" aria-label="What the interventions did">
    <h2>What the interventions did</h2>
    <ol>
      ${receipts.map((receipt, i) => {
        const edit = run.request.interventions[i];
        const neuron = neuronOf(edit, model.topk.presets);
        const label = neuron && summaries?.get(neuronName(neuron.layer, neuron.neuron))?.label;
        return html`<li>
          ${neuron
            ? html`<${NeuronLink} model=${model.id} ...${neuron} label=${label} />`
            : html`<span class="neuron-id">${editName(edit)}</span>`}
          <p><${Receipt} receipt=${receipt} edit=${edit} /></p>
        </li>`;
      })}
    </ol>
  </section>`;
}

function Receipt({ receipt, edit }) {
  if (receipt.positions_applied === 0) return "Applied nowhere.";
  const { positions_applied: applied, first, last, active_before: active, evicted } = receipt;
  const where = first === last ? `position ${first}` : `positions ${first} to ${last}`;
  const isOneLayer = !Array.isArray(edit.layer) && edit.layer !== "all";
  const before = isOneLayer && active === 0 ? "it was active at none of them" : `it was active ${times(active)} before`;
  return html`Applied at ${tokens(applied)} (${where}); ${before}. Mean activation
    ${" "}<strong>${number(receipt.mean_before)} → ${number(receipt.mean_after)}</strong>.
    ${evicted > 0 && html` It pushed another neuron out ${times(evicted)}.`}`;
}

function times(count) {
  return count === 1 ? "once" : `${count} times`;
}

function tokens(count) {
  return count === 1 ? "1 token" : `${count} tokens`;
}
