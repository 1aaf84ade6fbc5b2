// A text as read by each training checkpoint of the model: read on demand, and kept.

import { useEffect, useMemo, useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useAsked } from "../core/models.js";
import { Trace } from "../core/trace.js";

/** The states of a model that can read, the final one last: [{id, name, step}]; its step is null. */
export function statesOf({ id, topk }) {
  const steps = topk.checkpoints.map((name) => Number(name.replace("step-", ""))).sort((a, b) => a - b);
  const kept = steps.map((step) => ({ id: `${id}@step-${step}`, name: `step ${step}`, step }));
  return [...kept, { id, name: "final", step: null }];
}

/** The step at which training ended; null if it is not recorded. */
export function useFinalStep({ id, topk }) {
  const { value } = useAsked(async (signal) => {
    if (!topk.has_catalogue) return null;
    const path = `v1/neurons/${topk.topk_layers[0]}/0/history?${new URLSearchParams({ model: id })}`;
    return (await call(path, { signal })).checkpoints.at(-1).step;
  }, [id]);
  return value ?? null;
}

/**
 * Readings of `text` by the states of a model, each {state, text, trace, loss}, by the state's index. The one
 * at `index` is requested at once, the others by `runAll`.
 */
export function useReadings(states, text, index) {
  const kept = useMemo(() => new Map(), [text, states]);
  const [, redraw] = useState();
  const [all, setAll] = useState(null); // the progress of `runAll`: {kept, done, controller, error}
  const readInto = async (i, signal) => {
    if (!text) return null;
    if (!kept.has(i)) kept.set(i, await readText(states[i], text, signal));
    redraw({});
    return kept.get(i);
  };
  const asked = useAsked((signal) => readInto(index, signal), [kept, index]);
  const runAll = async () => {
    const controller = new AbortController();
    const say = (more) => setAll({ kept, controller, error: null, ...more });
    try {
      for (let i = 0; i < states.length; i++) {
        say({ done: i });
        await readInto(i, controller.signal);
      }
      setAll(null);
    } catch (error) {
      if (error.name === "AbortError") setAll((now) => (now?.controller === controller ? null : now));
      else say({ controller: null, error, done: 0 });
    }
  };
  useEffect(() => () => all?.controller?.abort(), [all?.controller, kept]);
  return { kept, asked, runAll, all: all?.kept === kept ? all : null };
}

/** The loss is in nats per token; null for a text of one token. */
async function readText(state, text, signal) {
  const body = { model: state.id, prompt: text, max_tokens: 0, echo: true, logprobs: 0, trace: {} };
  const { choices } = await call("v1/completions", { body, signal });
  const known = choices[0].logprobs.token_logprobs.filter((value) => value !== null);
  const loss = known.length ? -known.reduce((sum, value) => sum + value, 0) / known.length : null;
  return { state, text, trace: new Trace(choices[0].trace), loss };
}
