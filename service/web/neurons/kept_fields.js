// The content of a form, kept in the address: a link, or going back, fills the form again.

import { useEffect, useState } from "preact/hooks";
import { useSettled } from "../core/parts.js";
import { href, useAddress } from "../core/router.js";

/**
 * [fields, setFields, address]. `names` are the names of the fields, whose values are texts. `onNew` gets the new fields if
 * the address changes by itself.
 *
 * @returns {[Record<string, string>, (fields: Record<string, string>) => void, string]}
 */
export function useFields(view, parts, params, names, onNew) {
  const [fields, setFields] = useState(() => read(params, names));
  const model = params.get("model");
  const settled = { model, ...useSettled(fields) };
  useAddress(view, parts, settled);
  useEffect(() => {
    // Settled fields are in the address by now: it differs only if a link or the browser has changed it.
    if (location.hash === href(view, parts, settled)) return;
    const found = read(params, names);
    setFields(found);
    onNew?.(found);
  }, [params.toString()]);
  return [fields, setFields, href(view, parts, { model, ...fields })];
}

function read(params, names) {
  return Object.fromEntries(names.map((name) => [name, params.get(name) ?? ""]));
}
