// One neuron over the checkpoints of training, and over the layers.

import { html, NeuronLink, neuronName, number, percent } from "../core/parts.js";
import { href } from "../core/router.js";
import { Table, TokenList } from "./neuron_parts.js";
import { Plot } from "../core/plots.js";

// Of `StageCells`, which stand after a first cell.
const STAGE_COLUMNS = [
  { name: "Density", isNumber: true },
  { name: "Token entropy", isNumber: true },
  { name: "Overlap", isNumber: true },
  { name: "Top tokens" },
];

/** `history`: the reply of …/history; `modelParam`: the model as links name it. */
export function History({ history, modelParam }) {
  const { checkpoints } = history;
  const known = checkpoints.filter(({ step }) => step > 0);
  const steps = known.map(({ step }) => step);
  const plots = [
    ["Density", "%", (stage) => 100 * stage.density],
    ["Token entropy", "bits", (stage) => stage.token_entropy],
    ["Overlap of tokens with the final model", "", (stage) => stage.token_overlap],
  ];
  return html`<section aria-labelledby="history" class="stages">
    <h2 id="history">Over training</h2>
    ${steps.length > 0 &&
    html`<div class="plots">
      ${plots.map(
        ([title, unit, value]) =>
          html`<${Plot}
            title=${unit ? `${title}, ${unit}` : title}
            x=${steps}
            series=${[{ name: unit || "overlap", values: known.map(value) }]}
            xLabel="step"
            logX=${true}
            fromZero=${true}
            hasTable=${false}
          />`,
      )}
    </div>`}
    <${Table} name="The neuron at each checkpoint" columns=${[{ name: "Step" }, ...STAGE_COLUMNS]}>
      ${checkpoints.map(
        (stage, i) =>
          html`<tr>
            <td>
              <${StepLink}
                history=${history}
                stage=${stage}
                isFinal=${i + 1 === checkpoints.length}
                modelParam=${modelParam}
              />
            </td>
            <${StageCells} stage=${stage} />
          </tr>`,
      )}
    <//>
    <p class="quiet">
      Overlap: of its ten top tokens with those of the final model, tokens in both over tokens in either.
    </p>
  </section>`;
}

/** The neurons of the same index in all TopK layers. */
export function Layers({ history, model }) {
  return html`<section aria-labelledby="layers" class="stages">
    <h2 id="layers">In the other layers</h2>
    <p class="quiet">
      The residual stream has the same coordinates in every layer: these are the neurons of the same index.
    </p>
    <${Table} name="The neuron of this index in each layer" columns=${[{ name: "Neuron" }, ...STAGE_COLUMNS]}>
      ${history.layers.map(
        (stage) =>
          html`<tr>
            <td>
              ${stage.layer === history.layer
                ? html`<span class="neuron-id">${neuronName(stage.layer, history.neuron)}</span> this one`
                : html`<${NeuronLink} ...${{ ...stage, model: model.id, neuron: history.neuron }} />`}
            </td>
            <${StageCells} stage=${stage} />
          </tr>`,
      )}
    <//>
  </section>`;
}

function StageCells({ stage }) {
  return html`
    <td class="number">${stage.is_dead ? "dead" : percent(stage.density)}</td>
    <td class="number">${number(stage.token_entropy)}</td>
    <td class="number">${stage.token_overlap === null ? "–" : percent(stage.token_overlap)}</td>
    <td class="token-list"><${TokenList} tokens=${stage.top_tokens} /></td>
  `;
}

function StepLink({ history, stage, isFinal, modelParam }) {
  const step = isFinal ? null : stage.step;
  const address = href("neuron", [history.layer, history.neuron], { model: modelParam, step });
  return html`<a href=${address}>${isFinal ? "final" : number(stage.step)}</a
    >${isFinal && stage.step !== null && ` (${number(stage.step)})`}`;
}
