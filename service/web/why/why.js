// Why: which neurons before a token it rests on, what holds those up, and what the text is without one of them.

import { useState } from "preact/hooks";
import { call } from "../core/api.js";
import { useJob } from "../core/jobs.js";
import { hasNeurons, Limits } from "../core/limits.js";
import { useAsked } from "../core/models.js";
import { Busy, ErrorNote, Heading, html, Warnings } from "../core/parts.js";
import { go } from "../core/router.js";
import { TextForm } from "../read/text_form.js";
import { Effects } from "./effects.js";
import { attributionBody, readQuestion, whyAddress } from "./question.js";
import { Rewritten } from "./rewritten.js";
import { Target, Trail } from "./target.js";
import { WhyTokens } from "./why_tokens.js";

export default function Why({ model, params }) {
  return html`
    <${Heading} title="Why this token?" />
    <${Limits} model=${model} view="why" />
    ${hasNeurons(model) && html`<${Asked} model=${model} params=${params} />`}
  `;
}

function Asked({ model, params }) {
  const question = readQuestion(params);
  const modelParam = params.get("model");
  const address = (changes) => whyAddress(modelParam, { ...question, without: undefined, ...changes });
  const text = useTokens(model, question.ids);
  const tokens = text.value?.key === question.ids.join() ? text.value.tokens : null;
  const job = useJob("v1/attributions", attributionBody(question, model));
  const { result } = job;
  return html`
    <p class="quiet">
      Which neurons a token rests on: each active neuron before it is ablated alone, in the model as it runs, and what that
      does to the token’s probability is measured.
    </p>
    <${NewText} model=${model} isOpen=${question.ids.length === 0}
      onIds=${(ids) => go(whyAddress(modelParam, { ids }))} />
    ${question.ids.length > 0 &&
    html`
      <${ErrorNote} error=${text.error ?? job.error} onRetry=${text.error ? text.retry : job.retry} />
      ${tokens &&
      html`<${WhyTokens} tokens=${tokens} question=${question} positions=${result?.positions ?? null}
          address=${(at) => address({ trail: [{ at }] })} />
        <${Trail} trail=${question.trail} tokens=${tokens} summaryOf=${model}
          address=${(length) => address({ trail: question.trail.slice(0, length) })} />`}
      <${Busy} isBusy=${job.isBusy} what="Ablating each neuron" share=${job.share} onStop=${job.stop} />
      ${result &&
      tokens &&
      html`<${Warnings} warnings=${result.warnings} />
        <${Target} result=${result} />`}
      <div class=${question.without ? "why-main split" : "why-main"}>
        ${result &&
        tokens &&
        html`<${Effects} result=${result} model=${model} without=${question.without}
          whyAddress=${(neuron) => address({ trail: [...question.trail, neuron] })}
          withoutAddress=${(neuron) => address({ without: neuron })} />`}
        ${question.without &&
        tokens &&
        html`<${Rewritten} key=${JSON.stringify(question)} question=${question} model=${model} tokens=${tokens}
          closeAddress=${address({})} />`}
      </div>
    `}
  `;
}

/** A text to type; `onIds` gets its token ids. */
function NewText({ model, isOpen, onIds }) {
  const [text, setText] = useState("");
  const [error, setError] = useState(null);
  const run = async (wanted) => {
    try {
      const reply = await call("v1/tokenize", { body: { model: model.id, prompt: wanted, add_special_tokens: true } });
      setError(null);
      onIds(reply.tokens);
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<details class="new-text" open=${isOpen}>
    <summary>${isOpen ? "A text" : "Another text"}</summary>
    <${TextForm} model=${model} text=${text} setText=${setText} onRun=${run} what="Ask why" />
    <${ErrorNote} error=${error} />
  </details>`;
}

/** Texts of tokens, {key, tokens}: [{text, isSpecial}]. */
function useTokens(model, ids) {
  const key = ids.join();
  return useAsked(async (signal) => {
    if (ids.length === 0) return null;
    const trace = { layers: [model.topk.topk_layers[0]], top_n: 1 };
    const body = { model: model.id, input: ids, trace };
    const { tokens, is_special: isSpecial } = (await call("v1/activations", { body, signal })).data[0].trace;
    return { key, tokens: tokens.map((text, i) => ({ text, isSpecial: isSpecial[i] })) };
  }, [model.id, key]);
}
