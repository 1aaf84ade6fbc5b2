// A text for a model to read, kept in the address: a field that counts its tokens, and a button.

import { useId, useState } from "preact/hooks";
import { useTokenCount } from "../core/models.js";
import { html, useSettled } from "../core/parts.js";

const EXAMPLES = [
  "The dog ran after the ball, and the boy laughed.",
  "“I am sorry,” said the girl, and she began to cry.",
  "The boat sailed over the sea until it came to a small island.",
];

let kept = ""; // while the page is open

/** The initial text of a view: the one in its address, or else the last one typed. */
export function firstText(params) {
  return params.get("text") ?? kept;
}

/** The text being typed, and the same once it has settled, for the address: [text, setText, settled]. */
export function useText(params) {
  const [text, setText] = useState(firstText(params));
  kept = text;
  return [text, setText, useSettled(text)];
}

export function TextForm({ model, text, setText, onRun, what }) {
  const id = useId();
  const count = useTokenCount(model, useSettled(text));
  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      onRun(text);
    }
  };
  const submit = (event) => {
    event.preventDefault();
    onRun(text);
  };
  const context = model.topk.context_length;
  const isTooLong = count > context;
  const take = (example) => {
    setText(example);
    onRun(example);
  };
  return html`<form class="text-form" onSubmit=${submit}>
    <label for=${id}>Text</label>
    <textarea
      id=${id}
      rows="4"
      value=${text}
      aria-describedby=${`${id}-count`}
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${onKeyDown}
    ></textarea>
    <div class="under">
      <button class="primary" disabled=${!text}>${what}</button>
      <span class="quiet">Ctrl+Enter</span>
      <span id=${`${id}-count`} class=${isTooLong ? "problem" : "quiet"}
        >${count ? `${count} of ${context} tokens` : ""}${isTooLong && ": too many to read"}</span
      >
    </div>
    ${!text &&
    html`<p class="examples">
      Type a text, or try${" "}
      ${EXAMPLES.map(
        (example) => html`<button type="button" onClick=${() => take(example)}>${example}</button>`,
      )}
    </p>`}
  </form>`;
}
