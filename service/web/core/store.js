// Values that several parts of the page watch.

import { useEffect, useState } from "preact/hooks";

/** A value and its watchers. */
export class Store {
  #value;
  #watchers = new Set();

  constructor(value) {
    this.#value = value;
  }

  get() {
    return this.#value;
  }

  set(value) {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const watcher of [...this.#watchers]) watcher(value);
  }

  /** Calls `watcher` with each new value until the returned function is called. */
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }
}

/** The store's value; the component is redrawn when it changes. */
export function useStore(store) {
  const [, redraw] = useState();
  useEffect(() => {
    redraw({}); // it may have changed between drawing and watching
    return store.watch(() => redraw({}));
  }, [store]);
  return store.get();
}
