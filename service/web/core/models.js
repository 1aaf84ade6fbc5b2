// The served models, and the labels of their neurons. Requested once, and kept while the page is open.

import { useEffect, useRef, useState } from "preact/hooks";
import { call, connection } from "./api.js";
import { Store, useStore } from "./store.js";

const PAGE = 500; // neurons of a request for labels
const MAX_SUMMARIES = 20000; // more would cost the page seconds and megabytes
const MAX_AGAIN = 4; // after this many consecutive refusals by a reachable service, a request is not repeated automatically

/** Cards of the served models; null while they are unknown. */
export const models = new Store(null);

export async function loadModels() {
  models.set((await call("v1/models")).data);
}

/** The card of the model with this id, or of the first; null while unknown, undefined if there is none. */
export function useModel(id) {
  const all = useStore(models);
  if (all === null) return null;
  return id ? all.find((model) => model.id === id) : all[0];
}

const labels = new Map(); // model → Store of null or Map
const asked = new Map(); // model → how often

/** `layer/neuron` → its summary, of all neurons of a model; null while not known, without a catalogue, or of too many. */
export function useSummaries(model) {
  const id = model && hasSummaries(model.topk) ? model.id : "";
  if (!labels.has(id)) labels.set(id, new Store(null));
  const store = labels.get(id);
  const state = useStore(connection);
  useEffect(() => {
    const tries = asked.get(id) ?? 0;
    if (!id || store.get() !== null || state !== "up" || tries > MAX_AGAIN) return;
    asked.set(id, tries + 1);
    loadSummaries(id, store);
  }, [id, state]);
  return useStore(store);
}

function hasSummaries({ has_catalogue: hasCatalogue, topk_layers: layers, hidden_size: width }) {
  return hasCatalogue && layers.length * width <= MAX_SUMMARIES;
}

const loading = new Set();

async function loadSummaries(id, store) {
  if (loading.has(id)) return;
  loading.add(id);
  try {
    const found = new Map();
    let total = Infinity;
    for (let offset = 0; offset < total; offset += PAGE) {
      const page = await call(`v1/neurons?${new URLSearchParams({ model: id, limit: String(PAGE), offset: String(offset) })}`);
      for (const neuron of page.data) found.set(`${neuron.layer}/${neuron.neuron}`, neuron);
      total = page.total;
    }
    store.set(found);
  } catch {
    // The page works without labels, and the next view that needs them requests them again.
  } finally {
    loading.delete(id);
  }
}

const pages = new Map(); // [model, layer, neuron] as JSON → promise of its page

/** A neuron's page of the catalogue, requested once and kept. Rejects as `call`. */
export function neuronPage(model, { layer, neuron }) {
  const key = JSON.stringify([model.id, layer, neuron]);
  if (!pages.has(key)) {
    const query = new URLSearchParams({ model: model.id });
    const page = call(`v1/neurons/${layer}/${neuron}?${query}`);
    pages.set(key, page);
    page.catch(() => pages.delete(key));
  }
  return pages.get(key);
}

/** The same; null while it is unknown, for no neuron, and without a catalogue. */
export function useNeuronPage(model, neuron) {
  const isKnown = neuron !== null && model.topk.has_catalogue;
  const { value, error } = useAsked(
    async () => (isKnown ? neuronPage(model, neuron) : null),
    [model.id, isKnown, neuron?.layer, neuron?.neuron],
  );
  const isOf = value?.layer === neuron?.layer && value?.neuron === neuron?.neuron;
  return isKnown && isOf && !error ? value : null;
}

/** Tokens of a text; undefined while they are unknown, and if the service refuses to count them. */
export function useTokenCount(model, text) {
  const { value, error } = useAsked(
    async (signal) =>
      text === "" ? 0 : (await call("v1/tokenize", { body: { model: model.id, prompt: text }, signal })).count,
    [model.id, text],
  );
  return error ? undefined : value;
}

/**
 * Calls `work(signal)` again whenever `keys` change or the service is back, and returns the result:
 * {value, error, isBusy, retry, stop}. An old value stays until the new one has arrived.
 */
export function useAsked(work, keys) {
  const [state, setState] = useState({ value: undefined, error: null, isBusy: true });
  const [turn, setTurn] = useState(0);
  const [stop, setStop] = useState(() => () => {});
  const again = useRef(0); // number of consecutive automatic calls
  const isUp = useStore(connection) === "up";
  const wasLost = state.error?.status === 0 || state.error?.status === 503 || state.error?.status === 401;
  useEffect(() => {
    const controller = new AbortController();
    let isOver = false; // a later call has begun and owns the state
    setStop(() => () => controller.abort());
    setState((old) => ({ ...old, error: null, isBusy: true }));
    work(controller.signal).then(
      (value) => {
        if (controller.signal.aborted) return;
        again.current = 0;
        setState({ value, error: null, isBusy: false });
      },
      (error) =>
        isOver || setState((old) => ({ ...old, error: error.name === "AbortError" ? null : error, isBusy: false })),
    );
    return () => {
      isOver = true;
      controller.abort();
    };
  }, [...keys, turn]);
  useEffect(() => {
    if (!isUp || !wasLost || again.current >= MAX_AGAIN) return;
    again.current += 1;
    setTurn(turn + 1);
  }, [isUp, wasLost]);
  const retry = () => {
    again.current = 0;
    setTurn(turn + 1);
  };
  return { ...state, retry, stop };
}
