// What raising a neuron does, as it was measured when the catalogue was made.

import { html, hundredths, number, percent } from "../core/parts.js";
import { Plot } from "../core/plots.js";
import { signed, TokenText } from "./neuron_parts.js";

/** `steering` is that of a neuron's page; null if raising the neuron brings no word. */
export function Raising({ steering }) {
  if (!steering) return null;
  const { words, curve, in_units_of_max: best } = steering;
  const at = curve.find((point) => point.in_units_of_max === best) ?? curve.at(-1);
  const strengths = curve.map((point) => point.in_units_of_max);
  const plots = [
    ["Its words among the next tokens, %", "share", curve.map((point) => 100 * point.share)],
    ["Cost, nats per token", "cost", curve.map((point) => point.cost)],
  ];
  return html`<section aria-labelledby="raising" class="raising">
    <h2 id="raising">What raising it does</h2>
    <p class="brought">
      It brings${" "}
      ${words.map((word) => html`<span title=${`${signed(word.value, number)} nats`}><${TokenText} token=${word.token} /></span> `)}
    </p>
    <p>
      At the best strength, ${number(best)} × its maximum, these are ${percent(at.share)} of the next tokens instead of${" "}
      ${percent(curve[0].share)}, at a cost of ${hundredths(at.cost)} nats per token.
    </p>
    <div class="plots">
      ${plots.map(
        ([title, name, values]) =>
          html`<${Plot} title=${title} x=${strengths} series=${[{ name, values }]} xLabel="× its maximum"
            fromZero=${name === "share"} />`,
      )}
    </div>
    <details>
      <summary>How it is measured</summary>
      <p>
        The value is added at every token of short openings of texts. Its words are the ten tokens whose probability
        rises most, found on other openings than those that share and cost are measured on. Cost: how much less likely
        the text written that way is under the plain model. Best: its words come often enough, or the cost has reached
        its limit.
      </p>
    </details>
  </section>`;
}
