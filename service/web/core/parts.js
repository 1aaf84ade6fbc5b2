// Small pieces that every view uses.

import { h } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";
import { href, usePlace } from "./router.js";

/** Templates as elements: inserted values are text, never markup. */
export const html = htm.bind(h);

/** The service's error message, and a button to try again. */
export function ErrorNote({ error, onRetry }) {
  if (!error) return null;
  return html`<div class="note error" role="alert">
    <p>${error.param && !error.message.includes(error.param) && html`<code>${error.param}</code>${" "}`}${error.message}</p>
    ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}
  </div>`;
}

/** Warnings of a reply. */
export function Warnings({ warnings }) {
  if (!warnings?.length) return null;
  return html`<ul class="note warning">${warnings.map((warning) => html`<li>${warning}</li>`)}</ul>`;
}

/** Shows that something is in progress and can be stopped; appears only after a moment. */
export function Busy({ isBusy, what, onStop, share }) {
  const [isShown, show] = useState(false);
  useEffect(() => {
    if (!isBusy) return show(false);
    const timer = setTimeout(() => show(true), 200);
    return () => clearTimeout(timer);
  }, [isBusy]);
  if (!isBusy || !isShown) return null;
  return html`<p class="busy" role="status">
    <progress aria-label=${what} max="1" value=${share}></progress>${" "}${what}
    ${onStop && html`${" "}<button type="button" onClick=${onStop}>Stop</button>`}
  </p>`;
}

/** An empty state that says what to do. */
export function Empty({ children }) {
  return html`<p class="empty">${children}</p>`;
}

export function Copy({ text, what }) {
  const [said, say] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied");
    } catch {
      say("Not allowed here: select the text and copy it");
    }
    setTimeout(() => say(""), 2000);
  };
  return html`<span class="copy">
    <button type="button" aria-label=${`Copy ${what}`} onClick=${copy}>Copy</button>
    <span role="status">${said}</span>
  </span>`;
}

/** `layer/neuron`, the notation used everywhere. */
export function neuronName(layer, neuron) {
  return `${layer}/${neuron}`;
}

export function NeuronLink({ model, layer, neuron, label }) {
  return html`<a class="neuron-link" href=${href("neuron", [layer, neuron], { model })}>
    <span class="neuron-id">${neuronName(layer, neuron)}</span>${label && html`${" "}<span class="label">${label}</span>`}
  </a>`;
}

/** A token's text with its line ends and other invisible characters made visible. */
export function visible(token) {
  return token.replace(/\n/g, "↵\n").replace(/\t/g, "⇥").replace(/^ +$/, (spaces) => "␣".repeat(spaces.length));
}

/** The colour level, 0 to 8, of an activation: CSS has a class for each. */
export function shade(value, max) {
  return value > 0 && max > 0 ? Math.max(1, Math.min(8, Math.ceil((8 * value) / max))) : 0;
}

/** A piece of text, each token shaded by its activation. */
export function ShadedText({ tokens, activations, max, peak }) {
  return html`<span class="shaded">${tokens.map(
    (token, i) =>
      html`<span
        class=${`token shade-${shade(activations[i], max)}${i === peak ? " peak" : ""}`}
        title=${activations[i] > 0 ? number(activations[i]) : undefined}
        >${token}</span
      >`,
  )}</span>`;
}

/** `layer/index` as {layer, neuron}; null for anything else. */
export function parseNeuron(text) {
  const found = /^\s*(\d{1,9})\s*\/\s*(\d{1,9})\s*$/.exec(text);
  return found && { layer: Number(found[1]), neuron: Number(found[2]) };
}

/** A number for people: integers in full, others with three digits. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en");
  return size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** A cost in nats, to hundredths, and never as minus zero. */
export function hundredths(value) {
  return (Math.round(100 * value) / 100 + 0).toFixed(2);
}

export function percent(share) {
  return share === null || share === undefined ? "–" : `${number(100 * share)} %`;
}

/** Scrolls to an element if its beginning is not in the upper part of the window, as on a phone; at once drawn anew. */
export function bringIntoView(element) {
  requestAnimationFrame(() => {
    const { top } = element.getBoundingClientRect();
    if (top >= 0 && top < innerHeight / 2) return;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "start", behavior: isCalm ? "auto" : "smooth" });
  });
}

/** `value`, delayed until it has not changed for `delayMs`. */
export function useSettled(value, delayMs = 250) {
  const [settled, settle] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => settle(value), delayMs);
    return () => clearTimeout(timer);
  }, [value, delayMs]);
  return settled;
}

/** Sets the page's title, and moves the focus to the view's heading when the view has changed. */
export function Heading({ children, title }) {
  const heading = useRef();
  const { moves } = usePlace();
  useEffect(() => {
    document.title = `${title} – TopK playground`;
  }, [title]);
  useEffect(() => {
    const at = document.activeElement; // the body, if the followed link was removed with its view
    if (at?.matches("nav a") || (moves > 0 && at === document.body)) heading.current.focus();
  }, []);
  return html`<h1 tabindex="-1" ref=${heading}>${children ?? title}</h1>`;
}
