// How far to move a neuron: what is best by the catalogue, and a slider whose scale shows effect and cost.

import { newEdit, rounded } from "./edits.js";
import { neuronPage } from "../core/models.js";
import { html, hundredths, number, percent } from "../core/parts.js";

const STEPS = 100; // of a slider with a scale
const PLAIN = { min: -2, max: 4, step: 0.05 }; // the range of one without, in units or as a factor
const MOST = 10; // of a preset's strength

/** The edit that adds a neuron, by the value that was measured to be best for it. */
export async function bestEdit(model, neuron) {
  const page = model.topk.has_catalogue ? await neuronPage(model, neuron).catch(() => null) : null;
  return newEdit(neuron, page, model.topk);
}

/**
 * A slider.
 *
 * - curve: that of `steering` of the neuron's page; with it, the slider has a scale
 * - best: the value that is best, in multiples of the neuron's largest activation
 * - share: the multiple of the neuron's largest activation that a value of 1 adds
 * - unit: the length of 1 on a slider without a scale
 * - isFactor: the value is a factor on a preset, and never below 0
 */
export function Strength({ value, curve: measured, best, share, unit = 1, isFactor = false, onValue }) {
  const at = typeof value === "number" ? value : 0;
  const curve = measured?.map((point) => ({ ...point, at: point.in_units_of_max / share }));
  const range = curve ? rangeOf(curve, at, isFactor) : { ...PLAIN, min: isFactor ? 0 : PLAIN.min };
  const scale = curve ? 1 : unit;
  const told = curve ? outcomeAt(curve, at) : undefined;
  return html`<div class="strength">
    <input
      type="range"
      aria-label="Value, by a slider"
      aria-valuetext=${told && `${number(at)}: ${told}`}
      min=${range.min * scale}
      max=${range.max * scale}
      step=${range.step * scale}
      value=${at}
      onInput=${(event) => onValue(rounded(Number(event.target.value)))}
    />
    ${curve && html`<${Scale} curve=${curve} range=${range} best=${best / share} at=${at} />`}
    ${told && html`<p class="hint told">${told}</p>`}
  </div>`;
}

/** Effect and cost along the slider, with a mark at the best value. Drawn; `outcomeAt` says the same in words. */
function Scale({ curve, range, best, at }) {
  const x = (value) => (100 * (value - range.min)) / (range.max - range.min);
  const y = (name) => {
    const most = Math.max(...curve.map((point) => point[name]), 0);
    return (point) => (most > 0 ? 100 - (100 * Math.max(0, point[name])) / most : 100);
  };
  const line = (name) => curve.map((point) => `${x(point.at)} ${y(name)(point)}`).join(" L ");
  return html`<div class="scale" aria-hidden="true">
    <div class="drawn">
      <svg viewBox="0 0 100 100" preserveAspectRatio="none">
        <path class="effect" d=${`M ${line("share")}`} />
        <path class="cost" d=${`M ${line("cost")}`} />
        <line class="best" x1=${x(best)} x2=${x(best)} y1="0" y2="100" />
        ${at >= range.min && at <= range.max && html`<line class="at" x1=${x(at)} x2=${x(at)} y1="0" y2="100" />`}
      </svg>
      <span class="best-name" style=${{ insetInlineStart: `clamp(1.5rem, ${x(best)}%, 100% - 1.5rem)` }}>best ${number(best)}</span>
    </div>
    <p class="legend">
      <span><i class="mark series-1"></i>effect</span> <span><i class="mark series-2"></i>cost</span>
    </p>
  </div>`;
}

/** What a value does, between the measured points by straight lines. */
function outcomeAt(curve, at) {
  if (at < 0 || at > curve.at(-1).at) return "Not measured this far.";
  const next = Math.max(1, curve.findIndex((point) => point.at >= at));
  const [from, to] = [curve[next - 1], curve[next]];
  const part = (at - from.at) / (to.at - from.at);
  const between = (name) => from[name] + part * (to[name] - from[name]);
  const plain = percent(Number(curve[0].share.toPrecision(2)));
  const share = percent(Number(between("share").toPrecision(2)));
  return `Its words are ${share} of the next tokens (${plain} without it), at a cost of ${hundredths(between("cost"))} nats per token.`;
}

/** From 0 to the last point that was measured, and on to where the value is. */
function rangeOf(curve, at, isFactor) {
  const min = Math.min(0, at);
  const max = Math.max(curve.at(-1).at, at);
  const most = isFactor ? Math.min(MOST, max) : max;
  return { min, max: most, step: roundStep((most - min) / STEPS) };
}

/** The largest of 1, 2 and 5 times a power of ten that is at most `step`. */
function roundStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  const factor = [5, 2].find((each) => each * power <= step) ?? 1;
  return Number((factor * power).toPrecision(1));
}
