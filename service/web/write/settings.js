// The prompt, and how the next token is drawn.

import { useEffect, useRef } from "preact/hooks";
import { newSeed } from "./draft.js";
import { Field, NumberField } from "./fields.js";
import { useTokenCount } from "../core/models.js";
import { html, useSettled } from "../core/parts.js";

const REST = { top_p: "top_p", top_k: "top_k (0: all)", min_p: "min_p" };

/** `faultOf(name)` is the service's error for a field of the request. */
export function Prompt({ model, value, onValue, fault }) {
  return html`<${Field} label="Prompt" fault=${fault}>
      ${(attributes) =>
        html`<textarea ...${attributes} rows="4" value=${value}
          onInput=${(event) => onValue(event.target.value)}></textarea>`}
    <//>
    <${Length} model=${model} prompt=${value} />`;
}

/** How much of the model's context the prompt uses. */
function Length({ model, prompt }) {
  const count = useTokenCount(model, useSettled(prompt, 400));
  return html`<p class="quiet hint">
    ${count === undefined ? "" : `${count} of `}${model.topk.context_length} tokens of context
  </p>`;
}

export function Settings({ draft, onDraft, faultOf }) {
  const rest = useRef();
  const isFaultInside = [...Object.keys(REST), "stop", "trace"].some(faultOf);
  useEffect(() => {
    if (isFaultInside) rest.current.open = true;
  }, [isFaultInside]);
  const number = (name, label) =>
    html`<${NumberField} label=${label} value=${draft[name]} onValue=${(value) => onDraft({ [name]: value })}
      fault=${faultOf(name)} />`;
  return html`<fieldset class="bare settings">
    <legend class="unseen">Sampling</legend>
    <div class="setting-fields">
      ${number("max_tokens", "Max tokens")} ${number("temperature", "Temperature")} ${number("seed", "Seed")}
      <button type="button" onClick=${() => onDraft({ seed: newSeed() })}>New seed</button>
    </div>
    <details ref=${rest}>
      <summary>More settings</summary>
      <div class="setting-fields">${Object.entries(REST).map(([name, label]) => number(name, label))}</div>
      <${Field} label="Stop strings, one per line (\\n is a line break)" fault=${faultOf("stop")}>
        ${(attributes) =>
          html`<textarea ...${attributes} rows="2" spellcheck=${false} value=${draft.stop}
            onInput=${(event) => onDraft({ stop: event.target.value })}></textarea>`}
      <//>
      <label
        ><input type="checkbox" checked=${draft.isTraced} onChange=${() => onDraft({ isTraced: !draft.isTraced })} />
        Trace every neuron, to read below</label
      >
      ${faultOf("trace") && html`<p class="fault">${faultOf("trace")}</p>`}
    </details>
  </fieldset>`;
}
