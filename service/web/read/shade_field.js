// Choosing the neuron that shades a text: by its name, by a word of its label, or among those that stand out.

import { useEffect, useId, useMemo, useState } from "preact/hooks";
import { NeuronLink, html, neuronName, parseNeuron } from "../core/parts.js";
import { standOut } from "./trace_figures.js";

const SUGGESTED = 12;
const STANDING_OUT = 6;

/** The neuron that the address names, and how to choose another, or take a link's: {value, name, choose, take}. */
export function useNeuron(params) {
  const read = (from) => parseNeuron(from.get("neuron") ?? "");
  const [value, choose] = useState(() => read(params));
  const take = (other) => choose(read(other));
  return { value, choose, take, name: value && neuronName(value.layer, value.neuron) };
}

/** Neurons whose name begins with `text`, or whose label contains it: [[name, label]]. */
function matches(summaries, text) {
  const words = text.trim().toLowerCase();
  if (!words || !summaries) return [];
  const found = [];
  for (const [name, { label }] of summaries) {
    if (name.startsWith(words) || label?.toLowerCase().includes(words)) found.push([name, label]);
    if (found.length === SUGGESTED) break;
  }
  return found;
}

/** A field for the neuron that shades, with its link and a way to shade by none. */
export function ShadeField({ model, summaries, neuron, onNeuron }) {
  const id = useId();
  const name = neuron ? neuronName(neuron.layer, neuron.neuron) : "";
  const [text, setText] = useState(name);
  const [problem, setProblem] = useState("");
  const suggestions = useMemo(() => matches(summaries, text), [summaries, text]);
  const clear = () => {
    setText("");
    setProblem("");
    onNeuron(null);
  };
  useEffect(() => {
    setText(name);
    setProblem("");
  }, [name]);
  const apply = (event) => {
    const wanted = event.target.value;
    setText(wanted);
    if (!wanted.trim()) return clear();
    const found = parseNeuron(wanted) ?? parseNeuron(matches(summaries, wanted)[0]?.[0] ?? "");
    const wrong = found ? whatIsWrong(model.topk, found) : `No neuron's label has “${wanted.trim()}”.`;
    setProblem(wrong);
    if (!wrong) onNeuron(found);
  };
  return html`<div class="shade-field">
    <label for=${id}>Shade by neuron</label>
    <input
      id=${id}
      list=${`${id}-list`}
      placeholder=${summaries ? "layer/index or a word" : "layer/index"}
      autocomplete="off"
      value=${text}
      aria-invalid=${problem ? "true" : undefined}
      aria-describedby=${`${id}-problem`}
      onInput=${(event) => setText(event.target.value)}
      onChange=${apply}
    />
    <datalist id=${`${id}-list`}>
      ${suggestions.map(
        ([value, label]) =>
          html`<option value=${value} label=${label ? `${value} ${label}` : value}></option>`,
      )}
    </datalist>
    ${neuron &&
    html`<${NeuronLink} model=${model.id} ...${neuron} label=${summaries?.get(name)?.label} />
      <button type="button" onClick=${clear}>No shading</button>`}
    <span id=${`${id}-problem`} class="problem" role="status">${problem}</span>
  </div>`;
}

function whatIsWrong({ topk_layers: layers, hidden_size: size }, { layer, neuron }) {
  if (!layers.includes(layer)) return `Layer ${layer} is not a TopK layer; the TopK layers are ${layers.join(", ")}.`;
  return neuron < size ? "" : `A layer has neurons 0 to ${size - 1}.`;
}

/** Suggestions: neurons that are more active in a text than usual. `trace` is the final model's. */
export function StandingOut({ summaries, trace, neuron, onNeuron }) {
  const found = useMemo(
    () => (summaries ? standOut(trace, summaries, STANDING_OUT) : []),
    [summaries, trace],
  );
  if (found.length === 0) return null;
  return html`<p class="standing-out">
    <span>More active here than usual:</span>
    ${found.map(({ layer, neuron: index, count }) => {
      const name = neuronName(layer, index);
      const label = summaries.get(name).label;
      return html`${" "}<button
          type="button"
          key=${name}
          aria-pressed=${neuron?.layer === layer && neuron.neuron === index}
          title=${`active at ${count} tokens`}
          onClick=${() => onNeuron({ layer, neuron: index })}
        >
          <span class="neuron-id">${name}</span>${label && ` ${label}`}
        </button>`;
    })}
  </p>`;
}
