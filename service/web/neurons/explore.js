// Explore: the neurons of a model as a list, and those that stand for a text or set two sets of texts apart.

import { useRef } from "preact/hooks";
import { Limits } from "../core/limits.js";
import { Heading, html } from "../core/parts.js";
import { href } from "../core/router.js";
import { NeuronList } from "./explore_list.js";
import { ContrastSearch, TextSearch } from "./explore_search.js";

const MODES = {
  list: { title: "All neurons", parts: [], component: NeuronList },
  text: { title: "By a text", parts: ["text"], component: TextSearch },
  contrast: { title: "By a contrast", parts: ["contrast"], component: ContrastSearch },
};

export default function Explore({ parts, params, model }) {
  const mode = Object.hasOwn(MODES, parts[0]) ? parts[0] : "list";
  const { component } = MODES[mode];
  // The state of each mode, so that nothing is lost when another one is opened.
  const last = useRef({});
  const keep = (address) => (last.current[mode] = address);
  return html`
    <${Heading} title="Explore" />
    ${model.topk.has_catalogue
      ? html`<nav class="modes" aria-label="Ways to explore">
            ${Object.entries(MODES).map(
              ([name, { title, parts: own }]) =>
                html`<a
                  href=${last.current[name] ?? href("explore", own, { model: params.get("model") })}
                  aria-current=${name === mode ? "page" : undefined}
                  >${title}</a
                >`,
            )}
          </nav>
          <${component} key=${mode} params=${params} model=${model} keep=${keep} />`
      : html`<${Limits} model=${model} view="explore" />`}
  `;
}
