// Where the user is: everything that a link must hold stands after the # of the address, which no server ever sees.
//
// #/neuron/3/41?model=topk-default: the view "neuron", its parts ["3", "41"], and its parameters.

import { useEffect } from "preact/hooks";
import { Store, useStore } from "./store.js";

const place = new Store(read());
addEventListener("hashchange", () => place.set(read()));

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...parts] = path.split("/").map((part) => safely(decodeURIComponent, part));
  return { view: view || "write", parts, params: new URLSearchParams(query) };
}

function safely(decode, text) {
  try {
    return decode(text);
  } catch {
    return text;
  }
}

/** The present place: {view, parts, params}. */
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

/** Keeps what a view shows in the address, without a step in the history. */
export function useAddress(view, parts, params) {
  const address = href(view, parts, params);
  useEffect(() => {
    const here = read();
    if (here.view !== view || address === location.hash) return;
    history.replaceState(null, "", address);
    place.set(read());
  }, [address]);
}
