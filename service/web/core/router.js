// The current place: everything that a link must contain is after the # of the address, which no server ever sees.
//
// #/neuron/3/41?model=topk-default: the view "neuron", its parts ["3", "41"], and its parameters.

import { useEffect, useRef } from "preact/hooks";
import { Store, useStore } from "./store.js";

let moves = 0; // how often the address has changed other than by the page itself
const place = new Store(read());
addEventListener("hashchange", () => {
  moves += 1;
  place.set(read());
});

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...parts] = path.split("/").map((part) => safely(decodeURIComponent, part));
  return { view: view || "write", parts, params: new URLSearchParams(query), moves };
}

function safely(decode, text) {
  try {
    return decode(text);
  } catch {
    return text;
  }
}

/** The present place: {view, parts, params, moves}. */
export function usePlace() {
  return useStore(place);
}

/** The address of a place; parameters that are null, undefined or empty are left out. */
export function href(view, parts = [], params = {}) {
  const query = new URLSearchParams(
    Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== ""),
  );
  const path = [view, ...parts].map((part) => encodeURIComponent(part)).join("/");
  return `#/${path}${query.size ? `?${query}` : ""}`;
}

export function go(address) {
  location.hash = address;
}

/**
 * Keeps a view's state in the address, without an entry in the history. `take` gets the parameters of a link that is
 * followed while the view is open; a link without parameters changes nothing, and the address is restored.
 */
export function useAddress(view, parts, params, take) {
  const address = href(view, parts, params);
  const now = usePlace();
  const seen = useRef(now.moves);
  useEffect(() => {
    if (now.moves === seen.current) return;
    seen.current = now.moves;
    if (!take || now.view !== view) return;
    const isBare = [...now.params.keys()].every((name) => name === "model");
    if (isBare) history.replaceState(null, "", address);
    else take(now.params);
  }, [now.moves]);
  useEffect(() => {
    const here = read();
    if (here.view !== view || address === location.hash) return;
    history.replaceState(null, "", address);
    place.set(read());
  }, [address]);
}
