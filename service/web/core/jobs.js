// Computations that the service runs beside generations, and that tell how far they have come.

import { useState } from "preact/hooks";
import { stream } from "./api.js";
import { useAsked } from "./models.js";

/**
 * Asks for a computation whenever `body` changes; null asks for nothing.
 *
 * Returns `useAsked`'s fields, the `result` of this very body or null, the `last` result of any, and the `share` of the
 * work that is done, undefined while that is unknown.
 */
export function useJob(path, body) {
  const [progress, setProgress] = useState(null);
  const key = JSON.stringify(body);
  const asked = useAsked(async (signal) => {
    setProgress(null);
    if (body === null) return null;
    let result = null;
    const take = (event) => (event.object === "job.progress" ? setProgress(event) : (result = event));
    await stream(path, { ...body, stream: true }, take, signal);
    return { key, result };
  }, [path, key]);
  const isOwn = asked.value?.key === key && !asked.error;
  return {
    ...asked,
    result: isOwn ? asked.value.result : null,
    last: asked.value?.result ?? null,
    share: progress?.total > 0 ? progress.done / progress.total : undefined,
  };
}
