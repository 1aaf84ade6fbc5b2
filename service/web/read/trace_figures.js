// Figures of complete traces: their means, what changed between two, which neurons stand out. Knows no page.
//
// Special tokens are left out. Sums have one entry for each layer's place and neuron:
// place × hiddenSize + neuron.

/** {numTokens, sums, counts}: each neuron's activations and active tokens, over the first `end` tokens. */
function totals(trace, end = trace.tokens.length) {
  const size = trace.layers.length * trace.hiddenSize;
  const sums = new Float64Array(size);
  const counts = new Uint32Array(size);
  let numTokens = 0;
  for (let token = 0; token < end; token++) {
    if (trace.isSpecial[token]) continue;
    numTokens++;
    for (let place = 0; place < trace.layers.length; place++) {
      for (const [neuron, value] of trace.at(token, place)) {
        sums[place * trace.hiddenSize + neuron] += value;
        counts[place * trace.hiddenSize + neuron]++;
      }
    }
  }
  return { numTokens, sums, counts };
}

function neuronAt(trace, i) {
  return { layer: trace.layers[Math.floor(i / trace.hiddenSize)], neuron: i % trace.hiddenSize };
}

/** The number of tokens that two traces share at the start. */
export function numShared(one, other) {
  const end = Math.min(one.tokenIds.length, other.tokenIds.length);
  let token = 0;
  while (token < end && one.tokenIds[token] === other.tokenIds[token]) token++;
  return token;
}

/**
 * Neurons whose mean activation differs: {more, less}, each [{layer, neuron, before, after, difference}], the
 * largest difference first; over all tokens of each trace, or over their first `end`.
 */
export function changes(before, after, { end, limit }) {
  const [old, fresh] = [totals(before, end), totals(after, end)];
  const found = [];
  for (let i = 0; i < old.sums.length; i++) {
    if (old.sums[i] === 0 && fresh.sums[i] === 0) continue;
    const [was, is] = [old.sums[i] / old.numTokens, fresh.sums[i] / fresh.numTokens];
    if (was !== is) found.push({ ...neuronAt(before, i), before: was, after: is, difference: is - was });
  }
  found.sort((a, b) => b.difference - a.difference);
  return {
    more: found.filter(({ difference }) => difference > 0).slice(0, limit),
    less: found.filter(({ difference }) => difference < 0).reverse().slice(0, limit),
  };
}

/**
 * Neurons that are more active than usual: [{layer, neuron, count}], most surprising first.
 * Activations are measured in the neuron's maximum, and the surplus in its expected deviation, plus a constant
 * so that a single firing of a rare neuron is no great surprise.
 */
export function standOut(trace, summaries, limit) {
  const { numTokens, sums, counts } = totals(trace);
  const found = [];
  for (let i = 0; i < counts.length; i++) {
    const { layer, neuron } = neuronAt(trace, i);
    const summary = counts[i] > 0 && summaries.get(`${layer}/${neuron}`);
    if (!summary?.max) continue;
    const numExpected = summary.density * numTokens;
    const surplus = (sums[i] - numExpected * summary.mean) / summary.max / Math.sqrt(numExpected + 0.25);
    if (surplus > 0) found.push({ layer, neuron, count: counts[i], surplus });
  }
  return found.sort((a, b) => b.surplus - a.surplus).slice(0, limit);
}
