// Two texts of one prompt, side by side, marked from where they differ.

import { html } from "./parts.js";

/** `texts` are [{name, text}], all after `prompt`; the second is marked from where it leaves the first. */
export function SideBySide({ prompt, texts }) {
  const end = shared(texts.map(({ text }) => text));
  return html`<div class="continuations">
    ${texts.map(
      ({ name, text }, i) =>
        html`<section class="continuation" aria-label=${name}>
          <h3>${name}</h3>
          <p class="written">
            <span class="quiet">${prompt}</span>${i === 0 ? text : text.slice(0, end)}${i > 0 &&
            end < text.length &&
            html`<mark>${text.slice(end)}</mark>`}
          </p>
          ${i > 0 && text === texts[0].text && html`<p class="quiet hint">the same text</p>`}
        </section>`,
    )}
  </div>`;
}

/** How many characters two texts have in common from the start. */
function shared([one, other]) {
  let length = 0;
  while (length < one.length && one[length] === other[length]) length++;
  return length;
}
