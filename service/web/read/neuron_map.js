// One neuron over the tokens of a text, one row per layer or training step: a picture, and its table.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { html, number, shade, visible } from "../core/parts.js";
import { tokenName } from "./tokens.js";

const CELL = 14; // pixels, as all lengths here
const ROW = 18;
const HEAD = 66; // for the tokens' names, which are drawn slanted
const NAME = 10; // characters of a token's name

/** `rows` are [{name, values}], a value for each of `tokens`; `title` is the title. */
export function NeuronMap({ title, rows, tokens, chosen = null, onChoose }) {
  const box = useRef();
  const height = HEAD + ROW * rows.length;
  const lane = CELL * tokens.length;
  const width = lane + HEAD / 2; // the last names extend beyond the end
  const head = useMemo(() => tokens.map(drawnName), [tokens]);
  const cells = useMemo(() => drawnCells(rows, tokens), [rows, tokens]);
  useEffect(() => {
    if (chosen === null) return;
    const { scrollLeft, clientWidth } = box.current;
    const isSeen = chosen * CELL >= scrollLeft && (chosen + 1) * CELL <= scrollLeft + clientWidth;
    if (!isSeen) box.current.scrollLeft = chosen * CELL - clientWidth / 2;
  }, [chosen]);
  const choose = (event) => {
    const token = Math.floor((event.clientX - event.currentTarget.getBoundingClientRect().left) / CELL);
    if (token < tokens.length) onChoose(token);
  };
  return html`<figure class="neuron-map">
    <div class="map">
      <svg class="map-names" height=${height} aria-hidden="true">
        ${rows.map(({ name }, row) => html`<text x="0" y=${HEAD + ROW * (row + 0.75)}>${name}</text>`)}
      </svg>
      <div class="scrolled" ref=${box} tabindex="0" role="region" aria-label=${title}>
        <svg
          class=${onChoose ? "map-cells chooses" : "map-cells"}
          width=${width}
          height=${height}
          role="img"
          aria-label=${`${title}; the same as a table below`}
          onClick=${onChoose && choose}
        >
          ${rows.map(
            (_, row) =>
              html`<rect class="lane" x="0" y=${HEAD + ROW * row} width=${lane} height=${ROW - 2} />`,
          )}
          ${head} ${cells}
          ${chosen !== null &&
          html`<rect
            class="map-chosen"
            x=${CELL * chosen}
            y=${HEAD - 1}
            width=${CELL}
            height=${height - HEAD}
          />`}
        </svg>
      </div>
    </div>
    <${MapTable} title=${title} rows=${rows} tokens=${tokens} />
  </figure>`;
}

function drawnName(token, i) {
  const name = visible(token.replace(/^bytes:/, "")).trim().slice(0, NAME);
  return html`<text transform=${`translate(${CELL * (i + 0.7)} ${HEAD - 5}) rotate(-60)`}>${name}</text>`;
}

function drawnCells(rows, tokens) {
  let max = 0;
  for (const { values } of rows) for (const value of values) max = Math.max(max, Math.abs(value));
  return rows.flatMap(({ name, values }, row) =>
    values.map(
      (value, i) =>
        value !== 0 &&
        html`<rect
          class=${`cell heat-${shade(Math.abs(value), max)}`}
          x=${CELL * i}
          y=${HEAD + ROW * row}
          width=${CELL - 1}
          height=${ROW - 2}
          ><title>${`${tokenName(tokens[i])}, ${name}: ${number(value)}`}</title></rect
        >`,
    ),
  );
}

/** The same as numbers: the tokens at which it is active in any row. Drawn when it is opened. */
function MapTable({ title, rows, tokens }) {
  const [isOpen, open] = useState(false);
  return html`<details onToggle=${(event) => open(event.target.open)}>
    <summary>As a table</summary>
    ${isOpen &&
    html`<div class="scrolled" tabindex="0" role="region" aria-label=${`${title}, as a table`}>
      <table>
        <thead>
          <tr>
            <th class="number">Position</th>
            <th>Token</th>
            ${rows.map(({ name }) => html`<th class="number">${name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${tokens.map(
            (token, i) =>
              rows.some(({ values }) => values[i] !== 0) &&
              html`<tr>
                <td class="number">${i}</td>
                <th scope="row">${tokenName(token)}</th>
                ${rows.map(({ values }) => html`<td class="number">${number(values[i])}</td>`)}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`}
  </details>`;
}
