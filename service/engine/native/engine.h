// What an engine holds: weights, cache, tables of its caller, and the arrays that a step works in.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "api.h"
#include "matrix.h"
#include "simd.h"
#include "threads.h"

namespace topk {

// Columns of the tables of edits, as in topk_model/editing.py.
enum { OP, NEURON, START, END, SPECIAL, PRE, KTH, ROUND, RECEIPT, NUM_INTS };
enum { VALUE, LOW, HIGH, NUM_FLOATS };
enum { TEST, COND_LAYER, COND_NEURON, NUM_CONDITION_INTS };
enum { ACTIVE, APPLIED, CHANGED, EVICTED, BEFORE, AFTER, NUM_TALLIES };
enum { NO_OP, SET, ADD, SCALE, ABLATE, CLAMP, NUM_OPS };
enum { NO_TEST, IS_ACTIVE, IS_INACTIVE, IS_ABOVE, NUM_TESTS };

struct Layer {
    Memory norm1, norm2;
    Matrix qkv;  // the panels of each query head, then of each key head, then of each value head
    Matrix output, gate, up, down;
};

/// What is loaded, and then only read: engines may share it.
struct Weights {
    std::vector<Layer> layers;
    Matrix embedding, unembedding;
    Memory final_norm;
    uint64_t num_loaded = 0, num_to_load = 0;
    std::vector<bool> is_loaded;
};

/// One token of a step.
struct Row {
    int32_t piece, slot, position, token;
    int32_t block, offset;  // where its keys and values go
    bool is_special, is_counted, is_edited, is_bad;
};

/// Queries of one piece that share each block of keys and values; one item for each key head.
struct QueryTile {
    int32_t first_row, num_queries;
};

/// A row of the residual stream after TopK and edits: `count` nonzero entries, ascending.
struct SparseRow {
    const int32_t *indices;
    const float *values;
    int count;
};

/// What one thread works in.
struct Scratch {
    Memory head;     // [MAX_PRODUCT_ROWS][padded head_dim]
    Memory scores;   // [tile rows][positions]
    Memory queries;  // [tile rows][head_dim]
    Memory seen;     // [tile rows][padded head_dim]
    Memory keys;     // [padded hidden_size] int32, TopK's
    Memory raw;      // [padded hidden_size], a state under pre_topk edits
    Memory chosen;   // [hidden_size + 1] int32, and as many again for the choice after edits
    Memory logits;   // [padded vocab_size], with bias and penalties; then probabilities
    std::vector<uint64_t> candidates;
};

struct Engine {
    /// With weights of its own, to be loaded, or with those of another engine.
    explicit Engine(const topk_sizes &sizes, std::shared_ptr<Weights> shared = nullptr);

    topk_sizes sizes;
    // Derived sizes. Strides count floats.
    int64_t groups;       // query heads that share a key head
    int64_t head_stride;  // head_dim in whole panels
    int64_t stride, inner_stride, logit_stride, attention_stride;
    int64_t tile_rows;    // rows of a QueryTile at most, times its heads
    int64_t table_layers;  // TopK layers, at least 1
    int64_t state_width;  // entries of a SparseRow at most
    int64_t key_block, value_block;  // floats of a block of one layer

    Pool pool;
    std::shared_ptr<Weights> weights;
    std::vector<Layer> &layers;
    Matrix &embedding, &unembedding;
    Memory &final_norm;
    topk_tables tables{};
    bool is_bound = false;
    int sparse_choice = 0;

    Memory cosines, sines;  // [positions][head_dim / 2]
    int64_t num_positions = 0;
    Memory keys;    // [layers][blocks][kv_heads][block_size / 16][head_dim][16]
    Memory values;  // [layers][blocks][kv_heads][panels of head_dim][block_size][32]

    // Of one step. [max_rows] each.
    std::vector<Row> rows;
    std::vector<QueryTile> tiles;
    Memory hidden;     // [rows][stride], the residual stream
    Memory normed;     // [rows][stride]
    Memory query;      // [rows][heads * head_dim]
    Memory attended;   // [rows][attention_stride]
    Memory inner;      // [rows][inner_stride]
    Memory logits;     // [MAX_PRODUCT_ROWS][logit_stride]
    Memory unembedded;  // [MAX_PRODUCT_ROWS][stride], the normed rows that need logits
    Memory state_indices, state_values, state_counts;  // [topk layers][rows][state_width]; [topk layers][rows]
    Memory row_tallies;  // [rows][max_edits][6] doubles
    Memory row_applied;  // [rows][max_edits] bytes
    std::vector<Scratch> scratch;  // [threads]

    bool is_topk(int layer) const { return layer < sizes.num_topk_layers; }
    float *hidden_of(int64_t row) { return hidden.floats() + row * stride; }
    float *normed_of(int64_t row) { return normed.floats() + row * stride; }

    float *key_group(int layer, int64_t block, int head, int64_t offset) {
        const int64_t dim = sizes.head_dim, size = sizes.block_size;
        return keys.floats() + (layer * (sizes.num_blocks + 1) + block) * key_block + head * dim * size +
               offset / LANES * LANES * dim;
    }
    float *value_panel(int layer, int64_t block, int head, int64_t panel) {
        const int64_t size = sizes.block_size;
        return values.floats() + (layer * (sizes.num_blocks + 1) + block) * value_block +
               (head * head_stride + panel * PANEL) * size;
    }
    const int32_t *table_of(int slot) const { return tables.block_tables + int64_t(slot) * sizes.num_blocks; }

    int32_t *state_indices_of(int layer, int64_t row) {
        return state_indices.as<int32_t>() + (layer * int64_t(sizes.max_rows) + row) * state_width;
    }
    float *state_values_of(int layer, int64_t row) {
        return state_values.floats() + (layer * int64_t(sizes.max_rows) + row) * state_width;
    }
    int32_t &state_count_of(int layer, int64_t row) {
        return state_counts.as<int32_t>()[layer * int64_t(sizes.max_rows) + row];
    }
    SparseRow state_of(int layer, int64_t row) {
        return {state_indices_of(layer, row), state_values_of(layer, row), state_count_of(layer, row)};
    }
    double *tally_of(int64_t row) { return row_tallies.as<double>() + row * sizes.max_edits * NUM_TALLIES; }
    uint8_t *applied_of(int64_t row) { return row_applied.as<uint8_t>() + row * sizes.max_edits; }
};

/// x / sqrt(mean(x^2) + eps) * weight, over `width` of the padded row.
void rms_norm(const float *x, const float *weight, int64_t width, float eps, float *out);

/// Attention of one tile of queries to one key head, for the rows of `engine.query`, into `engine.attended`.
void attend(Engine &engine, int layer, const QueryTile &tile, int head, Scratch &scratch);

/// TopK and edits of one row of `engine.hidden`, in place; notes its entries and what its edits did.
void sparsify(Engine &engine, int layer, int64_t row, Scratch &scratch);
/// Add what the edits of `num_rows` rows did to the tables of the caller, in the order of the rows.
void count_edits(Engine &engine, int64_t num_rows);

/// The next token of a sequence by its slot's rules; `logits` [logit_stride], padded with -infinity.
int32_t draw(Engine &engine, int slot, int64_t num_drawn, const float *logits, Scratch &scratch);
/// log(sum(exp(logits))), nats.
double log_normaliser(const float *logits, int64_t padded_count);
/// The `count` most probable tokens, most probable first, ties to the lower id.
void most_probable(const float *logits, int64_t vocab_size, double normaliser, int count, int32_t *ids, float *logprobs);

/// TOPK_OK if every table that the step will read holds only valid entries.
int check_step(const Engine &engine, const topk_step &step);
void run_step(Engine &engine, topk_step &step);

}  // namespace topk
