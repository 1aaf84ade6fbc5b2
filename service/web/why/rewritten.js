// The text as it was written, and as it is without one neuron at one token.

import { useEffect, useRef } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { bringIntoView, Busy, ErrorNote, html, neuronName } from "../core/parts.js";
import { SideBySide } from "../core/side_by_side.js";
import { tokenName } from "../read/tokens.js";
import { rewritingBodies, startOf } from "./question.js";

export function Rewritten({ question, model, tokens, closeAddress }) {
  const { without } = question;
  const box = useRef();
  useEffect(() => bringIntoView(box.current), []);
  const bodies = rewritingBodies(question, model);
  const { value, error, isBusy, retry, stop } = useAsked(
    (signal) => Promise.all(bodies.map((body) => call("v1/completions", { body, signal }))),
    [JSON.stringify(bodies)],
  );
  const name = neuronName(without.layer, without.neuron);
  const prompt = tokens
    .slice(0, startOf(question))
    .filter(({ isSpecial }) => !isSpecial)
    .map(({ text }) => text)
    .join("");
  return html`<section class="rewritten" aria-label="Without the neuron" ref=${box}>
    <h2>Without <span class="neuron-id">${name}</span> at “${tokenName(tokens[without.at]?.text ?? "")}”</h2>
    <p class="quiet">
      The same request twice; the second time this neuron is ablated at this one token.
      ${" "}<a href=${closeAddress}>Close</a>
    </p>
    <${Busy} isBusy=${isBusy} what="Writing" onStop=${stop} />
    <${ErrorNote} error=${error} onRetry=${retry} />
    ${value &&
    html`<${SideBySide} prompt=${prompt}
      texts=${value.map((reply, i) => ({ name: i === 0 ? "Default" : `Without ${name}`, text: reply.choices[0].text }))} />`}
  </section>`;
}
