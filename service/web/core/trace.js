// Sparse activation traces, as the API sends them: columnar, row = token × layers + the layer's index.

/** A trace that may grow: a stream's chunks are appended to it. */
export class Trace {
  tokens = [];
  tokenIds = [];
  phases = [];
  isSpecial = [];
  #rows = []; // one Map of neuron → value for each token and layer

  /** `fields` is the `trace` of a reply, with encoding "json". */
  constructor(fields) {
    this.layers = fields.layers;
    this.k = fields.k;
    this.hiddenSize = fields.hidden_size;
    this.append(fields);
  }

  append(fields) {
    this.tokens.push(...fields.tokens);
    this.tokenIds.push(...fields.token_ids);
    this.phases.push(...fields.phases);
    this.isSpecial.push(...fields.is_special);
    for (let row = 0; row + 1 < fields.offsets.length; row++) {
      const values = new Map();
      for (let i = fields.offsets[row]; i < fields.offsets[row + 1]; i++) values.set(fields.indices[i], fields.values[i]);
      this.#rows.push(values);
    }
  }

  /** Neuron → value at a token, in the layer at index `place` of `layers`. */
  at(token, place) {
    return this.#rows[token * this.layers.length + place] ?? new Map();
  }

  /** A neuron's activation at a token, in the layer at `place`; 0 if it is not active. */
  value(token, place, neuron) {
    return this.at(token, place).get(neuron) ?? 0;
  }
}
