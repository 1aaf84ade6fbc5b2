// TopK of a row, and the edits of its sequence: topk_model/editing.py, one row at a time.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine.h"

namespace topk {
namespace {

/// A number that orders as the value does, -0 and 0 alike; by magnitude if `select_abs`.
TOPK_INLINE IntVec order_keys(Vec values, bool select_abs) {
    IntVec bits = (IntVec)(values + 0.0f);
    if (select_abs) return bits & 0x7fffffff;
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

TOPK_INLINE int64_t count_from(const int32_t *keys, int64_t padded_count, int32_t threshold) {
    IntVec below{};
    const IntVec limit = splat(threshold);
    for (int64_t i = 0; i < padded_count; i += WIDTH) {
        IntVec key;
        std::memcpy(&key, keys + i, sizeof key);
        below += (IntVec)(key < limit);
    }
    int64_t count = padded_count;
    for (int i = 0; i < WIDTH; ++i) count += below[i];
    return count;
}

/// The indices of the k entries that TopK keeps, ascending, into `chosen` [k + 1]; ties go to the lower index.
/// `keys` [width in whole panels] is overwritten.
void choose(const float *values, int64_t width, int k, bool select_abs, int32_t *keys, int32_t *chosen) {
    const int64_t padded_width = round_up(width, LANES);
    for (int64_t i = 0; i < padded_width; i += WIDTH) {
        const IntVec key = order_keys(load(values + i), select_abs);
        std::memcpy(keys + i, &key, sizeof key);
    }
    constexpr int32_t NEVER = std::numeric_limits<int32_t>::min();
    std::fill(keys + width, keys + padded_width, NEVER);
    // At least k keys are from `low` on, fewer than k from `high` on.
    int64_t low = *std::min_element(keys, keys + width), high = int64_t(*std::max_element(keys, keys + width)) + 1;
    int64_t above = 0;  // keys from `high` on
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        const int64_t count = count_from(keys, padded_width, int32_t(middle));
        if (count >= k)
            low = middle;
        else
            high = middle, above = count;
        if (count == k) {
            above = k;
            high = low;
            break;
        }
    }
    int64_t ties = k - above;
    int32_t *next = chosen;
    for (int64_t i = 0; i < width && next < chosen + k; ++i) {
        *next = int32_t(i);
        const bool is_above = keys[i] >= high, is_tied = !is_above && keys[i] == low && ties > 0;
        ties -= is_tied;
        next += is_above || is_tied;
    }
}

struct Edit {
    const int64_t *ints;
    const float *floats;
    bool holds, was_active;
};

/// One row at one layer, on its way through its edits.
struct Editing {
    Engine &engine;
    int layer;
    int64_t row;
    const Row &info;
    double *tally;
    uint8_t *applied;
    int num_edits;
    Edit edits[256];

    Editing(Engine &engine, int layer, int64_t row)
        : engine(engine), layer(layer), row(row), info(engine.rows[row]), tally(engine.tally_of(row)),
          applied(engine.applied_of(row)) {
        const topk_tables &tables = engine.tables;
        const int64_t place = info.slot * engine.table_layers + layer, most = engine.sizes.max_edits;
        num_edits = int(tables.num_edits[place]);
        for (int e = 0; e < num_edits; ++e) {
            edits[e].ints = tables.edit_ints + (place * most + e) * NUM_INTS;
            edits[e].floats = tables.edit_floats + (place * most + e) * NUM_FLOATS;
        }
    }

    /// The value of an earlier layer's state, or of this one's before its edits.
    float read(const float *base, int64_t at_layer, int64_t neuron) const {
        if (at_layer == layer) return base[neuron];
        const SparseRow state = engine.state_of(int(at_layer), row);
        const int32_t *end = state.indices + state.count;
        const int32_t *at = std::lower_bound(state.indices, end, int32_t(neuron));
        return at != end && *at == neuron ? state.values[at - state.indices] : 0.0f;
    }

    bool conditions_hold(const float *base, int e) const {
        const topk_tables &tables = engine.tables;
        const int64_t place = info.slot * engine.table_layers + layer;
        const int64_t first = (place * engine.sizes.max_edits + e) * engine.sizes.max_conditions;
        for (int64_t c = 0; c < tables.num_conditions[place]; ++c) {
            const int64_t *condition = tables.conditions + (first + c) * NUM_CONDITION_INTS;
            if (condition[TEST] == NO_TEST) continue;
            const float value = read(base, condition[COND_LAYER], condition[COND_NEURON]);
            const bool is_true = condition[TEST] == IS_ACTIVE     ? value != 0.0f
                                 : condition[TEST] == IS_INACTIVE ? value == 0.0f
                                                                  : value > tables.thresholds[first + c];
            if (!is_true) return false;
        }
        return true;
    }

    /// Decide which edits act; `chosen` are the entries that TopK keeps of the unedited row, `base` is that row.
    void decide(const float *base, const int32_t *chosen) {
        for (int e = 0; e < num_edits; ++e) {
            const int64_t *ints = edits[e].ints;
            edits[e].holds = ints[OP] > 0 && info.position >= ints[START] && info.position < ints[END] &&
                             (!info.is_special || ints[SPECIAL] > 0) && conditions_hold(base, e);
            edits[e].was_active =
                std::binary_search(chosen, chosen + engine.sizes.topk_k, int32_t(ints[NEURON]));
        }
    }

    static float edited(const Edit &edit, float before, float unit) {
        const float *floats = edit.floats;
        switch (edit.ints[OP]) {
            case SET: return floats[VALUE] * unit;
            case ADD: {
                const float amount = floats[VALUE] * unit;
                return before + amount;
            }
            case SCALE: return before * (floats[VALUE] * unit);
            case ABLATE: return 0.0f;
            default: {
                const float a = std::isinf(floats[LOW]) ? floats[LOW] : floats[LOW] * unit;
                const float b = std::isinf(floats[HIGH]) ? floats[HIGH] : floats[HIGH] * unit;
                return std::min(std::max(before, std::min(a, b)), std::max(a, b));
            }
        }
    }

    /// Apply the edits of one site to `state`, in their order.
    void apply(float *state, bool is_pre, float kth) {
        for (int e = 0; e < num_edits; ++e) {
            const Edit &edit = edits[e];
            if (!edit.holds || (edit.ints[PRE] > 0) != is_pre) continue;
            float &value = state[edit.ints[NEURON]];
            const float before = value;
            value = edited(edit, before, edit.ints[KTH] > 0 ? kth : 1.0f);
            double *counts = tally + edit.ints[RECEIPT] * NUM_TALLIES;
            applied[edit.ints[RECEIPT]] = 1;
            counts[ACTIVE] += is_pre ? edit.was_active : before != 0.0f;
            counts[APPLIED] += 1.0;
            counts[CHANGED] += before != value;
            counts[BEFORE] += before;
            counts[AFTER] += value;
        }
    }

    void count_evictions(const int32_t *chosen) {
        for (int e = 0; e < num_edits; ++e) {
            const Edit &edit = edits[e];
            if (!edit.holds || edit.ints[PRE] <= 0 || edit.was_active) continue;
            if (std::binary_search(chosen, chosen + engine.sizes.topk_k, int32_t(edit.ints[NEURON])))
                tally[edit.ints[RECEIPT] * NUM_TALLIES + EVICTED] += 1.0;
        }
    }

    bool has(bool is_pre) const {
        for (int e = 0; e < num_edits; ++e)
            if (edits[e].holds && (edits[e].ints[PRE] > 0) == is_pre) return true;
        return false;
    }
};

/// Zero all of `values` but the chosen entries.
void keep_chosen(float *values, int64_t padded_width, const int32_t *chosen, int k, float *kept) {
    for (int i = 0; i < k; ++i) kept[i] = values[chosen[i]];
    std::fill(values, values + padded_width, 0.0f);
    for (int i = 0; i < k; ++i) values[chosen[i]] = kept[i];
}

}  // namespace

void sparsify(Engine &engine, int layer, int64_t row, Scratch &scratch) {
    const topk_sizes &sizes = engine.sizes;
    const int64_t width = sizes.hidden_size, stride = engine.stride;
    const int k = sizes.topk_k;
    Row &info = engine.rows[row];
    float *state = engine.hidden_of(row), *values = engine.state_values_of(layer, row);
    int32_t *indices = engine.state_indices_of(layer, row);
    int32_t *keys = scratch.keys.as<int32_t>(), *chosen = scratch.chosen.as<int32_t>();
    const bool is_edited = info.is_edited && engine.tables.num_edits[info.slot * engine.table_layers + layer] > 0;

    if (!all_finite(state, stride)) info.is_bad = true;
    float *raw = scratch.raw.floats();
    if (is_edited) std::copy(state, state + stride, raw);
    choose(state, width, k, sizes.select_abs, keys, chosen);
    if (k < width) keep_chosen(state, stride, chosen, k, values);

    bool is_changed = false;
    if (is_edited) {
        Editing editing(engine, layer, row);
        editing.decide(state, chosen);
        float kth = std::numeric_limits<float>::infinity();
        for (int i = 0; i < k; ++i) kth = std::min(kth, sizes.select_abs ? std::fabs(raw[chosen[i]]) : raw[chosen[i]]);
        if (editing.has(true)) {
            editing.apply(raw, true, kth);
            int32_t *chosen_after = chosen + width + 1;
            choose(raw, width, k, sizes.select_abs, keys, chosen_after);
            editing.count_evictions(chosen_after);
            std::copy(raw, raw + stride, state);
            if (k < width) keep_chosen(state, stride, chosen_after, k, values);
            chosen = chosen_after;
        }
        if (editing.has(false)) {
            editing.apply(state, false, kth);
            is_changed = true;
        }
        if (!all_finite(state, stride)) info.is_bad = true;
    }
    int32_t count = 0;
    if (is_changed) {
        for (int64_t i = 0; i < width && count < engine.state_width; ++i) {
            if (state[i] != 0.0f) indices[count] = int32_t(i), values[count++] = state[i];
        }
    } else {
        for (int i = 0; i < k; ++i) {
            if (state[chosen[i]] != 0.0f) indices[count] = chosen[i], values[count++] = state[chosen[i]];
        }
    }
    engine.state_count_of(layer, row) = count;
}

void count_edits(Engine &engine, int64_t num_rows) {
    const topk_tables &tables = engine.tables;
    const int64_t most = engine.sizes.max_edits;
    for (int64_t row = 0; row < num_rows; ++row) {
        const Row &info = engine.rows[row];
        if (!info.is_edited || !info.is_counted) continue;
        const double *tally = engine.tally_of(row);
        const uint8_t *applied = engine.applied_of(row);
        for (int64_t i = 0; i < tables.num_interventions[info.slot]; ++i) {
            const int64_t place = info.slot * most + i;
            for (int t = 0; t < NUM_TALLIES; ++t) tables.tally[place * NUM_TALLIES + t] += tally[i * NUM_TALLIES + t];
            if (!applied[i]) continue;
            tables.num_positions[place] += 1;
            tables.first[place] = std::min<int64_t>(tables.first[place], info.position);
            tables.last[place] = std::max<int64_t>(tables.last[place], info.position);
        }
    }
}

}  // namespace topk
