// The request on the screen, as code to copy.

import { useId, useState } from "preact/hooks";
import { apiKey, call } from "../core/api.js";
import { requestOf } from "./draft.js";
import { useAsked } from "../core/models.js";
import { Copy, html } from "../core/parts.js";
import { curl, grpc, python } from "./snippets.js";

const LANGUAGES = {
  curl: { name: "curl", write: curl },
  python: { name: "Python", write: python },
  grpc: { name: "gRPC", write: grpc },
};

export function AsCode({ draft, model }) {
  const [chosen, choose] = useState("curl");
  const [isTraced, setTraced] = useState(false);
  const id = useId();
  const { value: version } = useAsked((signal) => call("version", { signal }), []);
  const where = {
    base: new URL(".", document.baseURI).href,
    target: `${location.hostname}:${version?.grpc_port ?? 9000}`,
    hasKey: apiKey() !== "",
  };
  const text = LANGUAGES[chosen].write(requestOf(draft, model, isTraced), where);
  const turn = (event) => {
    const names = Object.keys(LANGUAGES);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = names[(names.indexOf(chosen) + step + names.length) % names.length];
    choose(next);
    document.getElementById(`${id}-${next}`).focus();
  };
  return html`<section class="as-code" aria-label="As code">
    <h2>As code</h2>
    <div class="tabs">
      <div role="tablist" aria-label="Language" onKeyDown=${turn}>
        ${Object.entries(LANGUAGES).map(
          ([name, language]) =>
            html`<button type="button" role="tab" id=${`${id}-${name}`} aria-selected=${name === chosen}
              aria-controls=${`${id}-code`} tabindex=${name === chosen ? 0 : -1} onClick=${() => choose(name)}
              >${language.name}</button>`,
        )}
      </div>
      <label><input type="checkbox" checked=${isTraced} onChange=${() => setTraced(!isTraced)} /> with the trace</label>
      <${Copy} text=${text} what="the code" />
    </div>
    <pre role="tabpanel" id=${`${id}-code`} aria-labelledby=${`${id}-${chosen}`} tabindex="0"><code>${text}</code></pre>
  </section>`;
}
