// The parts of a neuron's page, each from its fields of /v1/neurons/{layer}/{neuron}.

import { html, NeuronLink, number, percent, ShadedText } from "../core/parts.js";
import { classes, signed, Table, TokenText } from "./neuron_parts.js";
import { Plot } from "../core/plots.js";

/** Its label, and how reliable the label is. */
export function LabelNote({ label }) {
  if (!label) {
    return html`<p class="quiet">No label: no simple rule of a few words predicts where it fires.</p>`;
  }
  return html`<details>
      <summary>Label: ${label.source}, score ${number(label.score)}</summary>
      <p>
        A label is a rule: the word is one of these or, if it begins with “after”, one of these comes
        shortly before. The score is the Matthews correlation of that rule with the neuron’s firings, on text
        that the rule was not derived from: 1 if it fires exactly where the rule says, 0 if the rule is no
        better than chance.
      </p>
      ${label.evidence.length > 0 &&
      html`<p>How often it fires where the rule finds each word:</p>
        <ul class="evidence">${label.evidence.map((line) => html`<li>${line}</li>`)}</ul>`}
    </details>`;
}

/** Its figures, each with its meaning. */
export function Figures({ page }) {
  const bits = (value) => (value === null ? "–" : `${number(value)} bits`);
  const figures = [
    ["Density", percent(page.density), "of all positions at which it is active"],
    ["Maximum", number(page.max), "its largest activation, the value of the unit max"],
    ["Mean", number(page.mean), "its mean activation where it is active"],
    ["Token entropy", bits(page.token_entropy), "over the tokens it fires on: 0 for only one"],
    ["Semantic entropy", bits(page.semantic_entropy), "the same over words, with similar words counted as one"],
  ];
  return html`<dl class="figures">
    ${figures.map(
      ([name, value, meaning]) =>
        html`<div>
          <dt>${name}</dt>
          <dd class="value">${value}</dd>
          <dd class="quiet">${meaning}</dd>
        </div>`,
    )}
  </dl>`;
}

/** The texts that represent it: where it fires most, and where most strongly. */
export function Examples({ page, isAbsolute }) {
  const lists = [
    ["examples", "Where it fires most", page.top_examples],
    ["strongest", "Where it fires most strongly", page.strongest_firings],
  ];
  return html`<div>
    ${lists.map(
      ([id, title, examples]) =>
        html`<section aria-labelledby=${id}>
          <h2 id=${id}>${title}</h2>
          <p class="quiet">The darker a token, the stronger it fires there; the strongest is underlined.</p>
          <ol class="examples">
            ${examples.map(
              (example) => html`<${ExampleItem} example=${example} max=${page.max} isAbsolute=${isAbsolute} />`,
            )}
          </ol>
        </section>`,
    )}
  </div>`;
}

function ExampleItem({ example, max, isAbsolute }) {
  const strength = (value) => (isAbsolute ? Math.abs(value) : value);
  return html`<li>
    <p class="example">
      <${ShadedText}
        tokens=${example.tokens.map((token) => token.replaceAll("\n", "↵"))}
        activations=${example.activations.map(strength)}
        max=${max}
        peak=${example.peak}
      />
    </p>
    <p class="quiet">
      ${number(example.max)} at <${TokenText} token=${example.tokens[example.peak]} />
      ${example.source && html` in ${example.source}`}
    </p>
  </li>`;
}

/** The strengths of its firings. */
export function Strength({ page }) {
  const { edges, counts } = page.histogram;
  const centres = counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
  const names = counts.map((_, i) => `${number(edges[i])} to ${number(edges[i + 1])}`);
  const quantiles = Object.entries(page.quantiles).sort(([one], [other]) => Number(one) - Number(other));
  return html`<section aria-labelledby="strength">
    <h2 id="strength">How strongly</h2>
    <${Plot}
      title="Firings by activation"
      kind="bars"
      x=${centres}
      names=${names}
      series=${[{ name: "firings", values: counts }]}
      xLabel="activation"
    />
    <dl class="quantiles">
      ${quantiles.map(
        ([share, value]) =>
          html`<div>
            <dt>${share === "0.5" ? "Median" : `${percent(Number(share))} below`}</dt>
            <dd>${number(value)}</dd>
          </div>`,
      )}
    </dl>
  </section>`;
}

export function TopTokens({ tokens }) {
  const columns = [
    { name: "Token" },
    { name: "Firings", isNumber: true },
    { name: "Share", isNumber: true, meaning: "of the neuron’s total activation" },
    { name: "Mean", isNumber: true, meaning: "activation there" },
  ];
  return html`<section aria-labelledby="tokens">
    <h2 id="tokens">What it fires on</h2>
    <${Table} name="Tokens that it fires on" columns=${columns}>
      ${tokens.map(
        (top) =>
          html`<tr>
            <td><${TokenText} token=${top.token} /></td>
            <td class="number">${number(top.count)}</td>
            <td class="number">${percent(top.share)}</td>
            <td class="number">${number(top.mean)}</td>
          </tr>`,
      )}
    <//>
    <p class="quiet">Share: of its total activation. Mean: mean activation there.</p>
  </section>`;
}

/** Its effect on the next token: measured, and read from the weights. */
export function Effects({ logit, ablation }) {
  return html`<section aria-labelledby="effects">
    <h2 id="effects">Effect on the next token</h2>
    <div class="columns">
      ${ablation &&
      html`<div>
        <h3>Measured by ablating it</h3>
        <p>${lossLine(ablation)}</p>
        <div class="pair">
          <${TokenValues} name="Less likely without it" effects=${ablation.negative} unit="nats" />
          <${TokenValues} name="More likely without it" effects=${ablation.positive} unit="nats" />
        </div>
        <details>
          <summary>How it is measured</summary>
          <p>
            The neuron is set to 0 at one position at which it fires, in its layer and nowhere else. The
            values are mean changes of the next token’s log-probability, in nats, over up to${" "}
            ${number(ablation.num_positions)} of its strongest firings.
          </p>
        </details>
      </div>`}
      <div>
        <h3>Read from the weights</h3>
        <div class="pair">
          <${TokenValues} name="Made likelier" effects=${logit.positive} unit="logit" />
          <${TokenValues} name="Made less likely" effects=${logit.negative} unit="logit" />
        </div>
        <details><summary>How it is computed</summary><p>${logit.note}</p></details>
      </div>
    </div>
  </section>`;
}

function lossLine({ loss_change: change, num_positions: count }) {
  const verdict = change > 0 ? "it helped there" : change < 0 ? "it hurt there" : "it had no effect there";
  const nats = `${signed(change, number)} nats per token`;
  return `Without it the loss changes by ${nats}, over ${number(count)} positions: ${verdict}.`;
}

function TokenValues({ name, effects, unit }) {
  return html`<div>
    <h4>${name}</h4>
    ${effects.length === 0
      ? html`<p class="quiet">None is large enough.</p>`
      : html`<table aria-label=${name}>
          <thead>
            <tr><th scope="col">Token</th><th scope="col" class="number">${unit}</th></tr>
          </thead>
          <tbody>
            ${effects.map(
              (effect) =>
                html`<tr>
                  <td><${TokenText} token=${effect.token} /></td>
                  <td class="number">${signed(effect.value, number)}</td>
                </tr>`,
            )}
          </tbody>
        </table>`}
  </div>`;
}

export function Related({ model, related }) {
  const columns = [{ name: "Neuron" }, { name: "PMI, bits", isNumber: true }];
  return html`<section aria-labelledby="related">
    <h2 id="related">Fires at the same positions</h2>
    ${related.length === 0
      ? html`<p class="quiet">No other neuron fires with it often enough.</p>`
      : html`<${Table} name="Neurons that fire at the same positions" columns=${columns}>
            ${related.map(
              (near) =>
                html`<tr>
                  <td><${NeuronLink} model=${model.id} ...${near} /></td>
                  <td class=${classes(columns[1])}>${number(near.pmi)}</td>
                </tr>`,
            )}
          <//>
          <p class="quiet">PMI: each bit doubles how often they fire together compared with chance.</p>`}
  </section>`;
}
