// A trace's text as running text: each token is shaded by one neuron and can be chosen.
//
// Drawn in blocks, each only when something in it has changed. The chosen token, and the one that gets
// the focus, are marked on the elements themselves, so that a choice redraws no token.

import { useEffect, useMemo, useRef } from "preact/hooks";
import { html, number, shade, visible } from "../core/parts.js";

const BLOCK = 64; // tokens

/** `place` (of the layer) and `neuron` are null if nothing is shaded; `max` has the strongest shade. */
export function Tokens({ name, trace, place, neuron, max, chosen, onChoose, onClose }) {
  const box = useRef();
  const length = trace.tokens.length;
  const starts = Array.from({ length: Math.ceil(length / BLOCK) }, (_, i) => i * BLOCK);
  useEffect(() => {
    const old = box.current.querySelector('[aria-selected="true"]');
    const next = chosen === null ? null : tokenElement(box.current, chosen);
    if (old !== next) old?.setAttribute("aria-selected", "false");
    next?.setAttribute("aria-selected", "true");
    const isReachable = box.current.querySelector('[tabindex="0"]') !== null;
    if (next || !isReachable) comeTo(box.current, next ?? tokenElement(box.current, 0));
  }, [chosen, trace, length > 0]);
  const onClick = (event) => {
    const token = event.target.closest("[data-token]");
    if (token) onChoose(Number(token.dataset.token));
  };
  const onKeyDown = (event) => {
    const from = event.target.closest("[data-token]");
    if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = neighbour(box.current, from, event.key);
    if (to) {
      comeTo(box.current, to);
      to.focus();
    } else if (event.key === "Enter" || event.key === " ") onChoose(Number(from.dataset.token));
    else if (event.key === "Escape") onClose();
    else return;
    event.preventDefault();
  };
  return html`<div
    class="tokens"
    ref=${box}
    role="listbox"
    aria-label=${`Tokens: ${name}`}
    onClick=${onClick}
    onKeyDown=${onKeyDown}
  >
    ${starts.map(
      (start) =>
        html`<${Block}
          key=${start}
          trace=${trace}
          start=${start}
          end=${Math.min(start + BLOCK, length)}
          place=${place}
          neuron=${neuron}
          max=${max}
        />`,
    )}
  </div>`;
}

function Block({ trace, start, end, place, neuron, max }) {
  return useMemo(() => {
    const tokens = Array.from({ length: end - start }, (_, i) => start + i);
    const activation = (token) => (neuron === null ? 0 : trace.value(token, place, neuron));
    return html`<span>${tokens.map((token) => drawn(trace, token, activation(token), max))}</span>`;
  }, [trace, start, end, place, neuron, max]);
}

function drawn(trace, token, activation, max) {
  const text = trace.tokens[token];
  const classes = ["token", `shade-${shade(Math.abs(activation), max)}`];
  if (trace.isSpecial[token] || text.startsWith("bytes:")) classes.push("odd");
  if (isFirstGenerated(trace, token)) classes.push("first-generated");
  return html`<span
    key=${token}
    role="option"
    tabindex="-1"
    aria-selected="false"
    aria-label=${text.trim() ? undefined : tokenName(text)}
    data-token=${token}
    class=${classes.join(" ")}
    title=${activation ? number(activation) : undefined}
    >${visible(text.replace(/^bytes:/, ""))}</span
  >`;
}

function isFirstGenerated({ phases }, token) {
  return phases[token] === "generated" && phases[token - 1] !== "generated";
}

/** The name of a token in a sentence or for a screen reader. */
export function tokenName(text) {
  return text.trim() || (text.includes("\n") ? "line end" : "space");
}

export function tokenElement(box, token) {
  return box.querySelector(`[data-token="${token}"]`);
}

/** Makes `token` the one that gets the focus. */
function comeTo(box, token) {
  const old = box.querySelector('[tabindex="0"]');
  if (old !== token) old?.setAttribute("tabindex", "-1");
  token?.setAttribute("tabindex", "0");
}

/** The token to which a key moves; null for other keys. */
function neighbour(box, from, key) {
  const token = Number(from.dataset.token);
  if (key === "ArrowRight") return tokenElement(box, token + 1) ?? from;
  if (key === "ArrowLeft") return tokenElement(box, token - 1) ?? from;
  if (key === "ArrowDown") return nearestOnNextLine(box, token, 1);
  if (key === "ArrowUp") return nearestOnNextLine(box, token, -1);
  if (key === "Home") return tokenElement(box, 0);
  if (key === "End") return [...box.querySelectorAll("[data-token]")].at(-1);
  return null;
}

function nearestOnNextLine(box, token, direction) {
  const all = box.querySelectorAll("[data-token]");
  const corner = (i) => all[i].getClientRects()[0];
  const here = corner(token);
  let nearest = token;
  let distance = Infinity;
  let line = null;
  for (let i = token + direction; i >= 0 && i < all.length; i += direction) {
    const { top, left, height } = corner(i);
    if (Math.abs(top - here.top) < height / 2) continue;
    line ??= top;
    if (Math.abs(top - line) >= height / 2) break;
    if (Math.abs(left - here.left) < distance) [nearest, distance] = [i, Math.abs(left - here.left)];
  }
  return all[nearest];
}
