// Line and bar charts: uPlot draws them, and the same numbers can be read as a table.

import { useEffect, useRef, useState } from "preact/hooks";
import { Empty, ErrorNote, html, number } from "./parts.js";

const HEIGHT = 200;
const MAX_MARKED = 40; // a line with more points is drawn without dots
const LABEL_PX = 44; // width of a label of the x axis
const DASHES = [undefined, [8, 4], [2, 3], [8, 3, 2, 3]];

/**
 * A chart of one or more series over `x`, which ascends.
 *
 * - series: [{name, values}]; a value of null leaves a gap
 * - names: names of the values of `x`, if the number alone is not enough
 * - kind: "line" or "bars"
 * - logX: needs x above 0; fromZero: the y axis begins at 0, as it does for bars
 * - hasTable: false if the view shows the numbers itself
 */
export function Plot(props) {
  const { title, x, series, names, xLabel, yLabel, logX, kind = "line", fromZero, hasTable = true } = props;
  const box = useRef();
  const legend = useRef();
  const [at, pointTo] = useState(null);
  const [hasFailed, fail] = useState(false);
  const isFromZero = fromZero || kind === "bars";
  const drawn = JSON.stringify([x, series, xLabel, yLabel, logX, kind, isFromZero]);
  useEffect(() => {
    pointTo(null);
    const element = box.current;
    if (!element) return undefined; // there is nothing to draw, or the view has already been closed
    const marks = legend.current.querySelectorAll(".mark");
    const data = [x, ...series.map(({ values }) => values)];
    const colour = (i) => getComputedStyle(marks[i]).color;
    const options = (uPlot) => ({
      ...sizeOf(element),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      hooks: { setCursor: [(chart) => pointTo(chart.cursor.idx ?? null)] },
      axes: [xAxis(element, xLabel, logX && x), axis(element, yLabel, 46)],
      scales: {
        x: { time: false, distr: logX ? 3 : 1, range: () => xRange(x, logX, kind) },
        y: isFromZero ? { range: (_, __, max) => uPlot.rangeNum(0, max || 1, 0.1, true) } : {},
      },
      series: [{}, ...series.map((_, i) => seriesOptions(uPlot, i, colour, kind, x.length))],
    });
    return draw(element, options, data, fail);
  }, [drawn]);
  if (!x.length) return html`<${Empty}>${title}: nothing to draw.<//>`;
  const places = x.map((place, i) => names?.[i] ?? number(place));
  const shown = at === null ? () => "" : ({ values }) => `: ${number(values[at])}`;
  const name = `${kind === "bars" ? "Bar chart" : "Line chart"}: ${title}; its numbers follow in a table`;
  return html`<figure class="plot">
    <figcaption>${title}</figcaption>
    <p class="legend quiet" ref=${legend} aria-hidden="true">
      ${series.map(
        (each, i) => html`<span><i class=${`mark series-${i + 1}`}></i>${each.name}${shown(each)}</span>`,
      )}
      ${at !== null && html`<span>${xLabel} ${places[at]}</span>`}
    </p>
    ${hasFailed && html`<${ErrorNote} error=${{ message: "The chart could not be loaded." }} />`}
    <div class="plot-box" ref=${box} role="img" aria-label=${name}></div>
    ${hasTable && html`<${Numbers} title=${title} xLabel=${xLabel} series=${series} places=${places} />`}
  </figure>`;
}

function Numbers({ title, xLabel, series, places }) {
  return html`<details>
    <summary>As a table</summary>
    <div class="scrolled" tabindex="0" role="region" aria-label=${`${title}, as a table`}>
      <table>
        <thead>
          <tr>
            <th scope="col">${xLabel}</th>
            ${series.map(({ name }) => html`<th scope="col" class="number">${name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${places.map(
            (place, i) =>
              html`<tr>
                <th scope="row">${place}</th>
                ${series.map(({ values }) => html`<td class="number">${number(values[i])}</td>`)}
              </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </details>`;
}

/** Draws into `box`, following its width and the page's colours as they change; returns a function that ends that. */
function draw(box, options, data, fail) {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  let chart = null;
  let isGone = false;
  const recolour = () => chart?.redraw();
  const observer = new ResizeObserver(() => chart.setSize(sizeOf(box)));
  const start = ({ default: uPlot }) => {
    if (isGone) return;
    chart = new uPlot(options(uPlot), data, box);
    observer.observe(box);
    fail(false);
  };
  import("uplot").then(start, () => fail(true));
  scheme.addEventListener("change", recolour);
  return () => {
    isGone = true;
    observer.disconnect();
    scheme.removeEventListener("change", recolour);
    chart?.destroy();
  };
}

function sizeOf(box) {
  return { width: box.clientWidth, height: HEIGHT };
}

// A canvas does not know CSS variables: its colours are read from elements that have them.
function axis(box, label, size) {
  const font = `12px ${getComputedStyle(box).fontFamily}`;
  const line = { stroke: () => getComputedStyle(box).borderTopColor, width: 1 };
  return {
    stroke: () => getComputedStyle(box).color,
    grid: line,
    ticks: { ...line, size: 4 },
    font,
    size,
    ...(label ? { label, labelFont: font, labelSize: 18 } : {}),
    values: (_, splits) => splits.map((value) => (value === null ? "" : number(value))),
  };
}

/** `places`: positions of its ticks, or false for round numbers. */
function xAxis(box, label, places) {
  const own = axis(box, label, 28);
  return places ? { ...own, splits: () => places, filter: spaced } : own;
}

/** The ticks whose labels fit, counted from the last one; null for the others. */
function spaced(chart, splits) {
  let next = Infinity;
  const kept = splits.toReversed().map((value) => {
    const place = chart.valToPos(value, "x");
    if (next - place < LABEL_PX) return null;
    next = place;
    return value;
  });
  return kept.reverse();
}

/** Ends of the x axis: slightly beyond the first and last value, half a bar if there are bars. */
function xRange(x, logX, kind) {
  const [first, last] = [x[0], x[x.length - 1]];
  if (logX) {
    const factor = last > first ? (last / first) ** 0.05 : 1.5;
    return [first / factor, last * factor];
  }
  const share = kind === "bars" ? 0.5 / Math.max(1, x.length - 1) : 0.02;
  const pad = last > first ? (last - first) * share : 0.5;
  return [first - pad, last + pad];
}

function seriesOptions(uPlot, i, colour, kind, length) {
  const own = () => colour(i);
  if (kind === "bars") {
    const paths = uPlot.paths.bars({ size: [0.9] });
    return { stroke: own, fill: own, width: 0, paths, points: { show: false } };
  }
  const points = { show: length <= MAX_MARKED, fill: own };
  return { stroke: own, width: 2, dash: DASHES[i % DASHES.length], points };
}
