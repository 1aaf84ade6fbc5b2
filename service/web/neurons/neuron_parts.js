// Small pieces that the views of neurons share.

import { html, visible } from "../core/parts.js";

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
