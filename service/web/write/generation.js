// One streamed generation: the text so far, the edits, and how it ended.

import { useEffect, useRef, useState } from "preact/hooks";
import { stream } from "../core/api.js";
import { Trace } from "../core/trace.js";

const NAMES = ["Default", "Steered"];

let last = null; // kept while other views are open

/**
 * {run, start, stop}. `run` is null before the first start, and then an object that grows until its `state`, which is
 * "running", is "done", "stopped" or "failed".
 */
export function useGeneration(isWanted) {
  const [shown, show] = useState(() => (last && isWanted(last.request) ? { run: last } : { run: null }));
  const controller = useRef(null);
  const isPending = useRef(false);

  useEffect(() => () => controller.current?.abort(), []);

  /** `rowIds` are those of the rows that the request's interventions came from. */
  const start = async (request, rowIds) => {
    controller.current?.abort();
    const own = new AbortController();
    controller.current = own;
    const run = newRun(request, rowIds);
    last = run;
    const draw = () => {
      isPending.current = false;
      if (controller.current === own) show({ run });
    };
    const drawSoon = () => {
      if (!isPending.current) requestAnimationFrame(draw);
      isPending.current = true;
    };
    draw();
    try {
      const body = { ...request, stream: true, stream_options: { include_usage: true } };
      await stream("v1/completions", body, (chunk) => (take(run, chunk), drawSoon()), own.signal);
      run.state = "done";
    } catch (error) {
      run.state = error.name === "AbortError" ? "stopped" : "failed";
      run.error = error.name === "AbortError" ? null : error;
    }
    run.seconds = (performance.now() - run.startedAt) / 1000;
    draw();
  };

  return { run: shown.run, start, stop: () => controller.current?.abort() };
}

function newRun(request, rowIds) {
  const names = request.compare ? NAMES : NAMES.slice(0, 1);
  return {
    request,
    rowIds,
    state: "running",
    texts: names.map((name) => ({ name, text: "", trace: null, finishReason: null, receipts: [] })),
    usage: null,
    warnings: [],
    error: null,
    startedAt: performance.now(),
    seconds: 0,
  };
}

function take(run, chunk) {
  for (const choice of chunk.choices) {
    const text = run.texts[choice.index];
    text.text += choice.text;
    if (choice.trace) {
      if (text.trace) text.trace.append(choice.trace);
      else text.trace = new Trace(choice.trace);
    }
    text.finishReason = choice.finish_reason ?? text.finishReason;
    text.receipts = choice.interventions ?? text.receipts;
  }
  run.warnings.push(...(chunk.warnings ?? []));
  run.usage = chunk.usage ?? run.usage;
}

/** The number of generated tokens of a text; null if it was not traced. */
export function numGenerated({ trace }) {
  return trace && trace.phases.filter((phase) => phase === "generated").length;
}

/** The number of characters that two texts share from the start, in complete tokens if they are known. */
export function sharedLength(one, other) {
  if (one.trace && other.trace) return sharedTokens(one.trace, other.trace).length;
  let length = 0;
  while (length < one.text.length && one.text[length] === other.text[length]) length++;
  return length;
}

/** The identical generated tokens at the start: their number, and the length of their text. */
export function sharedTokens(one, other) {
  const from = one.phases.indexOf("generated");
  if (from < 0) return { count: 0, length: 0 };
  let count = 0;
  const ids = [one.tokenIds, other.tokenIds];
  while (from + count < Math.min(ids[0].length, ids[1].length) && ids[0][from + count] === ids[1][from + count]) count++;
  const bytes = [];
  for (let i = from; i < from + count; i++) if (!one.isSpecial[i]) bytes.push(...bytesOf(one.tokens[i]));
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes), { stream: true });
  return { count, length: text.length };
}

/** A token that is not complete UTF-8 is given as bytes, `bytes:\xe2\x80`. */
function bytesOf(token) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return new TextEncoder().encode(token);
  return token.slice("bytes:\\x".length).split("\\x").map((digits) => parseInt(digits, 16));
}
