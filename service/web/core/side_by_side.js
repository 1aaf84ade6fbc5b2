// Two texts of one prompt, side by side.

import { html } from "./parts.js";

/** `texts` are [{name, text}], all after `prompt`. In the second, `words` are marked, or else where it leaves the first. */
export function SideBySide({ prompt, texts, words }) {
  const [first, second] = texts;
  const end = shared(first.text, second.text);
  const marked = words
    ? html`<${Marked} text=${second.text} words=${words} />`
    : html`${second.text.slice(0, end)}${end < second.text.length && html`<mark>${second.text.slice(end)}</mark>`}`;
  return html`<div class="continuations">
    <${Text} name=${first.name} prompt=${prompt}>${first.text}<//>
    <${Text} name=${second.name} prompt=${prompt} isSame=${first.text === second.text}>${marked}<//>
  </div>`;
}

function Text({ name, prompt, isSame, children }) {
  return html`<div class="continuation" role="group" aria-label=${name}>
    <h3>${name}</h3>
    <p class="written"><span class="quiet">${prompt}</span>${children}</p>
    ${isSame && html`<p class="quiet hint">the same text</p>`}
  </div>`;
}

/** A text with every one of `words` marked, in capitals or not. */
export function Marked({ text, words }) {
  const isOne = new Set(words.map((word) => word.toLowerCase()));
  const pieces = text.split(/([\p{L}\p{N}_]+)/u);
  return pieces.map((piece) => (isOne.has(piece.toLowerCase()) ? html`<mark>${piece}</mark>` : piece));
}

/** How many characters two texts have in common from the start, in whole words. */
function shared(one, other) {
  let length = 0;
  while (length < one.length && one[length] === other[length]) length++;
  if (length === one.length && length === other.length) return length;
  return Math.max(0, one.slice(0, length).search(/\S*$/));
}
