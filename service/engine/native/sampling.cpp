// Drawing a token: service/engine/sampler.py, one row at a time.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine.h"

namespace topk {
namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int64_t BLOCK = 64;  // probabilities that are summed before they join the sum of all

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/// The `step`-th number in [0, 1) of a seed's stream.
double uniform(int64_t seed, int64_t step) {
    const uint64_t bits = mix(mix(uint64_t(seed)) + 0x9E3779B97F4A7C15u * (uint64_t(step) + 1));
    return double(bits >> 11) * 0x1p-53;
}

float largest_of(const float *values, int64_t padded_count) {
    Lanes top = Lanes::filled(-INF);
    for (int64_t i = 0; i < padded_count; i += LANES) {
        const Lanes v = Lanes::at(values + i);
        TOPK_UNROLL for (int p = 0; p < PER_LANES; ++p) top.v[p] = larger(v.v[p], top.v[p]);
    }
    return top.largest();
}

int32_t first_largest(const float *values, int64_t count, int64_t padded_count) {
    const float top = largest_of(values, padded_count);
    for (int64_t i = 0; i < count; ++i)
        if (values[i] == top) return int32_t(i);
    return 0;  // NaN, which the caller checks for
}

/// Softmax in place, over a row padded with -infinity.
void to_probabilities(float *values, int64_t padded_count, float temperature) {
    const Vec divisor = splat(temperature);
    for (int64_t i = 0; i < padded_count; i += WIDTH) store(values + i, load(values + i) / divisor);
    const Vec top = splat(largest_of(values, padded_count));
    Lanes sum = Lanes::zero();
    for (int64_t i = 0; i < padded_count; i += LANES) {
        Lanes v = Lanes::at(values + i);
        TOPK_UNROLL for (int p = 0; p < PER_LANES; ++p) {
            v.v[p] = exponential(v.v[p] - top);
            sum.v[p] += v.v[p];
        }
        v.put(values + i);
    }
    const Vec total = splat(sum.sum());
    for (int64_t i = 0; i < padded_count; i += WIDTH) store(values + i, load(values + i) / total);
}

/// Inverse transform sampling in the order of the ids.
int32_t draw_any(const float *probs, int64_t vocab_size, double at) {
    const int64_t num_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    auto sum_of = [&](int64_t block) {
        double sum = 0.0;
        for (int64_t i = block * BLOCK, end = std::min(vocab_size, i + BLOCK); i < end; ++i) sum += double(probs[i]);
        return sum;
    };
    double total = 0.0;
    for (int64_t block = 0; block < num_blocks; ++block) total += sum_of(block);
    const double target = at * total;
    double mass = 0.0;
    int32_t last = 0;
    for (int64_t block = 0; block < num_blocks; ++block) {
        const double more = sum_of(block);
        if (mass + more <= target && block + 1 < num_blocks) {
            mass += more;
            continue;
        }
        for (int64_t i = block * BLOCK, end = std::min(vocab_size, i + BLOCK); i < end; ++i) {
            mass += double(probs[i]);
            if (probs[i] > 0.0f) last = int32_t(i);
            if (mass > target) return int32_t(i);
        }
    }
    return last;  // the sums of blocks rounded up past the sum of all
}

/// A probability and its token as one number: descending numbers are descending probabilities, then ascending ids.
uint64_t candidate(float prob, int64_t id) {
    uint32_t bits;
    std::memcpy(&bits, &prob, sizeof bits);
    return uint64_t(bits) << 32 | (0xffffffffu - uint32_t(id));
}
float prob_of(uint64_t candidate) {
    const uint32_t bits = uint32_t(candidate >> 32);
    float prob;
    std::memcpy(&prob, &bits, sizeof prob);
    return prob;
}
int32_t id_of(uint64_t candidate) { return int32_t(0xffffffffu - uint32_t(candidate)); }

/// Inverse transform sampling among the tokens that top_k, top_p and min_p leave, from the most probable down.
int32_t draw_cut(const float *probs, int64_t vocab_size, const topk_tables &rules, int slot, double at,
                 std::vector<uint64_t> &candidates) {
    const int64_t top_k = rules.top_k[slot];
    const double top_p = rules.top_p[slot];
    const float top = *std::max_element(probs, probs + vocab_size), least = rules.min_p[slot] * top;
    // Gather the most probable in larger and larger numbers, until what is left out cannot be kept.
    for (float from = top / 16.0f;; from /= 64.0f) {
        if (from < 1e-12f) from = 0.0f;
        candidates.clear();
        double mass = 0.0;
        for (int64_t i = 0; i < vocab_size; ++i) {
            if (probs[i] < from) continue;
            candidates.push_back(candidate(probs[i], i));
            mass += double(probs[i]);
        }
        if (from == 0.0f || int64_t(candidates.size()) >= top_k || mass - 1e-9 > top_p || least > from) break;
    }
    std::sort(candidates.begin(), candidates.end(), std::greater<uint64_t>());
    double total = 0.0;
    int64_t kept = 0;
    for (; kept < int64_t(candidates.size()); ++kept) {
        const float prob = prob_of(candidates[kept]);
        const double with = total + double(prob);
        if (kept > 0 && (kept >= top_k || !(with - double(prob) < top_p) || !(prob >= least))) break;
        total = with;
    }
    const double target = at * total;
    double mass = 0.0;
    for (int64_t i = 0; i < kept; ++i) {
        mass += double(prob_of(candidates[i]));
        if (mass > target) return id_of(candidates[i]);
    }
    return id_of(candidates[0]);  // NaN, which the caller checks for
}

}  // namespace

int32_t draw(Engine &engine, int slot, int64_t num_drawn, const float *logits, Scratch &scratch) {
    const topk_tables &rules = engine.tables;
    const int64_t vocab_size = engine.sizes.vocab_size, padded_size = engine.logit_stride;
    const float presence = rules.presence[slot], frequency = rules.frequency[slot];
    const float temperature = rules.temperature[slot];
    const bool is_penalised = presence != 0.0f || frequency != 0.0f;
    float *counts = rules.counts + slot * vocab_size;
    float *own = scratch.logits.floats();
    if (rules.has_bias[slot] || is_penalised || temperature > 0.0f) {
        std::copy(logits, logits + padded_size, own);
        logits = own;
    }
    if (rules.has_bias[slot]) {
        const float *bias = rules.bias + slot * vocab_size;
        for (int64_t i = 0; i < vocab_size; ++i) own[i] += bias[i];
    }
    if (is_penalised) {
        for (int64_t i = 0; i < vocab_size; ++i)
            own[i] = own[i] - presence * (counts[i] > 0.0f ? 1.0f : 0.0f) - frequency * counts[i];
    }
    int32_t token;
    if (temperature > 0.0f) {
        to_probabilities(own, padded_size, temperature);
        const double at = uniform(rules.seed[slot], num_drawn);
        const bool is_cut = rules.top_p[slot] < 1.0f || rules.top_k[slot] < vocab_size || rules.min_p[slot] > 0.0f;
        token = is_cut ? draw_cut(own, vocab_size, rules, slot, at, scratch.candidates)
                       : draw_any(own, vocab_size, at);
    } else {
        token = first_largest(logits, vocab_size, padded_size);
    }
    if (is_penalised) counts[token] += 1.0f;
    return token;
}

double log_normaliser(const float *logits, int64_t padded_count) {
    const float top = largest_of(logits, padded_count);
    Lanes sum = Lanes::zero();
    for (int64_t i = 0; i < padded_count; i += LANES) {
        const Lanes v = Lanes::at(logits + i);
        TOPK_UNROLL for (int p = 0; p < PER_LANES; ++p) sum.v[p] += exponential(v.v[p] - splat(top));
    }
    return double(top) + std::log(double(sum.sum()));
}

void most_probable(
    const float *logits, int64_t vocab_size, double normaliser, int count, int32_t *ids, float *logprobs) {
    int kept = 0;
    for (int64_t i = 0; i < vocab_size && count; ++i) {
        const float value = logits[i];
        if (kept == count && !(value > logprobs[kept - 1])) continue;
        int place = kept < count ? kept++ : kept - 1;
        for (; place > 0 && value > logprobs[place - 1]; --place)
            logprobs[place] = logprobs[place - 1], ids[place] = ids[place - 1];
        logprobs[place] = value, ids[place] = int32_t(i);
    }
    for (int i = 0; i < kept; ++i) logprobs[i] = float(double(logprobs[i]) - normaliser);
}

}  // namespace topk
