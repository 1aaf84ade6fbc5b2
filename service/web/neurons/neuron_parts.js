// Small pieces that the views of neurons share.

import { Empty, html, visible } from "../core/parts.js";

const COMMAND = "topk catalogue --model <folder of the model> --data <folder of its training data>";

/** Instructions for a model without a catalogue. */
export function NoCatalogue({ model }) {
  return html`<${Empty}>
      ${model.id} has no neuron catalogue, the source of neurons' labels, statistics and examples.
    <//>
    <p>Build one, and restart the service:</p>
    <pre tabindex="0" aria-label="Command that builds a catalogue"><code>${COMMAND}</code></pre>`;
}

/** A single token, marked so that its start and end are visible. */
export function TokenText({ token }) {
  return html`<code class="token-text">${visible(token).replaceAll("↵\n", "↵")}</code>`;
}

export function TokenList({ tokens }) {
  return tokens.map((token) => html`<${TokenText} token=${token} /> `);
}

/** A number with its sign. */
export function signed(value, write) {
  return value < 0 ? `−${write(-value)}` : `+${write(value)}`;
}

/**
 * A table that scrolls inside itself if it is too wide. `children` are its rows.
 *
 * columns: [{name, isNumber, isWide, meaning}]; wide ones are left out on a phone.
 */
export function Table({ name, columns, children }) {
  return html`<div class="scrolled" tabindex="0" role="region" aria-label=${name}>
    <table class="roomy">
      <thead>
        <tr>
          ${columns.map(
            (column) =>
              html`<th scope="col" class=${classes(column)} title=${column.meaning}>${column.name}</th>`,
          )}
        </tr>
      </thead>
      <tbody>
        ${children}
      </tbody>
    </table>
  </div>`;
}

/**
 * The classes of a column's cells.
 *
 * @param {{ isNumber?: boolean, isWide?: boolean }} column
 */
export function classes({ isNumber, isWide }) {
  return [isNumber && "number", isWide && "wide"].filter(Boolean).join(" ") || undefined;
}
