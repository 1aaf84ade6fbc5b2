// Calls the service's public HTTP API. Knows no page.

import { createParser } from "eventsource-parser";
import { Store } from "./store.js";

const KEY_ITEM = "topk-api-key";
const RETRY_MS = 1500;
const WATCH_MS = 10000;

/** Whether the service answers: "up", "down", or "locked" if it requires a key that it has not received. */
export const connection = new Store("up");

/** An error from the service, or that it could not be reached (status 0). */
export class ApiError extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

export function apiKey() {
  return sessionStorage.getItem(KEY_ITEM) ?? "";
}

/** Keeps the key only for this tab. */
export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY_ITEM, key);
  else sessionStorage.removeItem(KEY_ITEM);
  connection.set("up");
}

/**
 * The reply's JSON. Rejects with an ApiError, or with an AbortError once `signal` has been aborted.
 *
 * @param {string} path
 * @param {{ body?: object, signal?: AbortSignal }} [options]
 */
export async function call(path, { body, signal } = {}) {
  const reply = await ask(path, body, signal);
  try {
    return await reply.json();
  } catch (error) {
    throw lost(error); // it was cut off
  }
}

/** Passes each event of a streamed reply to `onChunk`. Rejects like `call`, also for an error mid-stream. */
export async function stream(path, body, onChunk, signal) {
  const reply = await ask(path, body, signal);
  let isDone = false;
  const parser = createParser({
    onEvent({ data }) {
      if (data === "[DONE]") {
        isDone = true;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(reply.status, chunk.error);
      onChunk(chunk);
    },
  });
  const decoder = new TextDecoder();
  const reader = reply.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parser.feed(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    throw lost(error);
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isDone) throw lost(new TypeError("the stream was cut off"));
}

/** Checks whether the service answers, while the page is open; more often if it did not the last time. */
export function watchConnection() {
  let timer;
  const lookIn = (milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(look, milliseconds);
  };
  const look = async () => {
    if (connection.get() !== "locked" && !document.hidden) {
      try {
        const reply = await fetch("health/ready", { cache: "no-store" });
        connection.set(reply.ok ? "up" : "down");
      } catch {
        connection.set("down");
      }
    }
    lookIn(connection.get() === "down" ? RETRY_MS : WATCH_MS);
  };
  lookIn(WATCH_MS);
  connection.watch((state) => state === "down" && lookIn(RETRY_MS));
}

async function ask(path, body, signal) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let reply;
  try {
    reply = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw lost(error);
  }
  if (reply.ok) {
    connection.set("up");
    return reply;
  }
  if (reply.status === 401) connection.set("locked");
  const text = await reply.text().catch(() => "");
  let fields;
  try {
    fields = JSON.parse(text).error;
  } catch {
    fields = undefined; // a proxy's own error
  }
  if (reply.status === 502 || reply.status === 503) connection.set("down");
  throw new ApiError(reply.status, fields ?? { message: `${reply.status} ${text.slice(0, 200)}` });
}

function lost(error) {
  if (error instanceof ApiError || error.name === "AbortError") return error;
  connection.set("down");
  return new ApiError(0, { message: "The connection to the service was lost.", code: "connection_lost" });
}
