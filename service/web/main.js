// The page's frame: navigation, the choice of a model, the state of the connection, and the current view.

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { apiKey, connection, keepKey, watchConnection } from "./core/api.js";
import { loadModels, models, useModel } from "./core/models.js";
import { Busy, Empty, ErrorNote, Heading, html } from "./core/parts.js";
import { go, href, usePlace } from "./core/router.js";
import { useStore } from "./core/store.js";

// A view is loaded when it is first opened: {title, load, component}.
const VIEWS = {
  write: { title: "Write and steer", load: () => import("./write/write.js") },
  read: { title: "Read", load: () => import("./read/read.js") },
  explore: { title: "Explore", load: () => import("./neurons/explore.js") },
  levers: { title: "Levers", load: () => import("./levers/levers.js") },
  why: { title: "Why", load: () => import("./why/why.js") },
  training: { title: "Training", load: () => import("./read/training.js") },
  neuron: { load: () => import("./neurons/neuron.js") },
};

function Page() {
  const { view, parts, params } = usePlace();
  const state = useStore(connection);
  const all = useStore(models);
  const model = useModel(params.get("model"));
  const [error, setError] = useState(null);
  const askModels = () => loadModels().then(() => setError(null), setError);
  useEffect(() => {
    if (all === null && state === "up") askModels();
  }, [all, state]);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header>
      <a class="brand" href=${href("write", [], { model: params.get("model") })}>TopK playground</a>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([name, { title }]) =>
            title &&
            html`<a href=${href(name, [], { model: params.get("model") })} aria-current=${name === view ? "page" : undefined}
              >${title}</a
            >`,
        )}
      </nav>
      ${all?.length > 0 && html`<${ModelChoice} all=${all} model=${model} view=${view} parts=${parts} params=${params} />`}
    </header>
    <${Connection} state=${state} />
    <main id="main" tabindex="-1">
      ${state === "locked" && html`<${KeyForm} />`}
      ${all === null
        ? error
          ? state !== "locked" && html`<${ErrorNote} error=${error} onRetry=${askModels} />`
          : html`<${Busy} isBusy=${true} what="Loading the list of models" />`
        : model === undefined
          ? html`<${Empty}>No model ${params.get("model")} is served here. Choose one above.<//>`
          : html`<${View} key=${`${view} ${model.id}`} view=${view} parts=${parts} params=${params} model=${model} />`}
    </main>
  `;
}

function skip(event) {
  event.preventDefault(); // the address contains the state, and #main must not replace it
  document.getElementById("main").focus();
}

/** The view of the current address; its code is loaded when it is first needed. */
function View({ view, parts, params, model }) {
  const isKnown = Object.hasOwn(VIEWS, view);
  const [component, setComponent] = useState(() => isKnown && VIEWS[view].component);
  const [error, setError] = useState(null);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (!isKnown || component) return;
    VIEWS[view].load().then(
      (module) => {
        VIEWS[view].component = module.default;
        setComponent(() => module.default);
      },
      () => setError({ message: "This part of the page could not be loaded." }),
    );
  }, [turn]);
  if (!isKnown) {
    return html`<${Heading} title="No such page" />
      <${Empty}>There is no page ${view}. <a href="#/">Write and steer</a><//>`;
  }
  if (error) return html`<${ErrorNote} error=${error} onRetry=${() => (setError(null), setTurn(turn + 1))} />`;
  if (!component) return html`<${Busy} isBusy=${true} what="Loading" />`;
  return html`<${component} parts=${parts} params=${params} model=${model} />`;
}

function ModelChoice({ all, model, view, parts, params }) {
  const choose = (event) => go(href(view, parts, { ...Object.fromEntries(params), model: event.target.value }));
  return html`<label class="model-choice"
    ><span>Model</span>
    <select value=${model?.id ?? ""} onChange=${choose}>
      ${!model && html`<option value="">–</option>`}
      ${all.map(({ id }) => html`<option value=${id}>${id}</option>`)}
    </select>
  </label>`;
}

function Connection({ state }) {
  return html`<div role="status" class="connection">
    ${state === "down" &&
    html`<p class="note error">
      The service does not answer. Nothing that you have typed is lost; the page continues as soon as the service is back.
    </p>`}
  </div>`;
}

function KeyForm() {
  const [key, setKey] = useState(apiKey());
  const [isRefused] = useState(key !== "");
  const field = useRef();
  useEffect(() => {
    if (isRefused) field.current.focus();
  }, []);
  const submit = (event) => {
    event.preventDefault();
    keepKey(key.trim());
  };
  return html`<form class="note key" onSubmit=${submit}>
    <label>API key${" "}
      <input ref=${field} type="password" autocomplete="off" value=${key} aria-invalid=${isRefused ? "true" : undefined}
        onInput=${(event) => setKey(event.target.value)} /></label>
    <button>Use it</button>
    ${isRefused && html`<p role="alert" class="problem">The service refused this key.</p>`}
    <p>This service asks for a key. The key is kept in this tab only.</p>
  </form>`;
}

watchConnection();
render(html`<${Page} />`, document.getElementById("app"));
