// Form fields that show the service's errors about them.

import { useEffect, useId, useState } from "preact/hooks";
import { html } from "../core/parts.js";

/** The number that a text means, undefined if empty; a text that is not a number stays text, for the service to reject. */
export function numberOf(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  const number = Number(trimmed);
  return Number.isFinite(number) ? number : trimmed;
}

function textOf(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A number that can be typed freely: "-" and "1." may be the beginning of one. */
export function NumberField({ label, isLabelHidden, value, onValue, fault, ...rest }) {
  const [text, setText] = useState(textOf(value));
  useEffect(() => {
    if (numberOf(text) !== value) setText(textOf(value));
  }, [value]);
  const type = (event) => {
    setText(event.target.value);
    onValue(numberOf(event.target.value));
  };
  return html`<${Field} label=${label} isLabelHidden=${isLabelHidden} fault=${fault}>
    ${(attributes) =>
      html`<input
        ...${rest}
        ...${attributes}
        class="figure"
        inputmode="decimal"
        autocomplete="off"
        value=${text}
        onInput=${type}
      />`}
  <//>`;
}

/** A choice among `options`: value → its name. Any other value is shown as it is. */
export function Select({ label, isLabelHidden, value, options, onValue, fault }) {
  const all = value in options ? options : { [textOf(value)]: textOf(value), ...options };
  return html`<${Field} label=${label} isLabelHidden=${isLabelHidden} fault=${fault}>
    ${(attributes) =>
      html`<select ...${attributes} value=${textOf(value)} onChange=${(event) => onValue(event.target.value)}>
        ${Object.entries(all).map(([name, said]) => html`<option value=${name}>${said}</option>`)}
      </select>`}
  <//>`;
}

/** A control with its label and its error; `children` is a function from its attributes to it. */
export function Field({ label, isLabelHidden, fault, children }) {
  const id = useId();
  const attributes = { id, "aria-invalid": fault ? "true" : undefined, "aria-describedby": fault && `${id}-fault` };
  return html`<div class=${fault ? "field faulty" : "field"}>
    <label for=${id} class=${isLabelHidden ? "unseen" : undefined}>${label}</label>
    ${[children].flat()[0](attributes)}
    ${fault && html`<p class="fault" id=${`${id}-fault`}>${fault}</p>`}
  </div>`;
}
