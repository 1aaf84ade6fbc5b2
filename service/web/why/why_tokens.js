// The text of a question: each token shaded by what it does to the target, and each a link to the question about itself.

import { html, number, shade, visible } from "../core/parts.js";
import { tokenName } from "../read/tokens.js";

/** `positions` are those of an attribution, or null while it is computed. */
export function WhyTokens({ tokens, question, positions, address }) {
  const effects = new Map((positions ?? []).map(({ position, effect }) => [position, effect]));
  const most = Math.max(0, ...[...effects.values()].map(Math.abs));
  const target = question.trail.at(-1);
  const drawn = ({ text, isSpecial }, at) => {
    const effect = effects.get(at) ?? 0;
    const level = shade(Math.abs(effect), most);
    const classes = [
      "token",
      level > 0 && `${effect > 0 ? "shade" : "cold"}-${level}`,
      (isSpecial || text.startsWith("bytes:")) && "odd",
      at === question.from && at > 1 && "first-generated",
      at > target.at && "after",
    ];
    const told = effect ? `${tokenName(text)}: ${number(effect)}` : undefined;
    const shown = visible(text.replace(/^bytes:/, ""));
    const name = classes.filter(Boolean).join(" ");
    if (at === 0) return html`<span class=${name} title=${told}>${shown}</span>`;
    return html`<a class=${name} href=${address(at)} title=${told} aria-label=${`Why ${tokenName(text)}?`}
      aria-current=${at === target.at ? "true" : undefined}>${shown}</a>`;
  };
  return html`<div class="why-text">
    <p class="reader-legend quiet">
      <span><span class="ramp" aria-hidden="true"></span> holds it up</span>
      ${" "}<span><span class="ramp cold" aria-hidden="true"></span> holds it down. </span>
      Click any token to ask why it is there.
    </p>
    <p class="why-tokens">
      ${tokens.map(drawn)}
      ${" "}<a class="token next" href=${address(tokens.length)}
        aria-current=${target.at === tokens.length ? "true" : undefined}>what follows?</a>
    </p>
  </div>`;
}
