// One step: rows of any mixture of sequences through all blocks, and the logits that are wanted.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine.h"
#include "product.h"

namespace topk {

void rms_norm(const float *x, const float *weight, int64_t width, float eps, float *out) {
    const int64_t padded_width = padded(width);
    Lanes squares = Lanes::zero();
    for (int64_t i = 0; i < padded_width; i += LANES) {
        const Lanes v = Lanes::at(x + i);
        TOPK_UNROLL for (int p = 0; p < PER_LANES; ++p) squares.v[p] = fma(v.v[p], v.v[p], squares.v[p]);
    }
    const Vec inverse = splat(1.0f / std::sqrt(squares.sum() / float(width) + eps));
    for (int64_t i = 0; i < padded_width; i += WIDTH) store(out + i, load(weight + i) * (load(x + i) * inverse));
}

namespace {

constexpr int64_t FEW_ROWS = 2;  // a phase of a microsecond a row is not worth sharing below this

/// A step's rows cut into parts that one product takes.
struct Chunks {
    int64_t num_rows, count;
    explicit Chunks(int64_t num_rows) : num_rows(num_rows), count((num_rows + MAX_PRODUCT_ROWS - 1) / MAX_PRODUCT_ROWS) {}
    int64_t begin(int64_t chunk) const { return num_rows * chunk / count; }
    int size(int64_t chunk) const { return int(begin(chunk + 1) - begin(chunk)); }
};

class Step {
public:
    Step(Engine &engine, topk_step &io)
        : engine_(engine), io_(io), sizes_(engine.sizes), num_rows_(io.num_rows), chunks_(io.num_rows) {}

    void run() {
        lay_out();
        wanted_ = wanted_rows();
        if (io_.first_layer)
            resume();
        else
            embed();
        for (int layer = int(io_.first_layer); layer < sizes_.num_layers; ++layer) {
            const bool is_last = layer + 1 == sizes_.num_layers;
            const int64_t num_queries = sizes_.num_heads, num_others = 2 * sizes_.num_kv_heads;
            if (is_last && !engine_.is_topk(layer)) {
                project(layer, num_queries, num_others);
                finish_states();
                keep_wanted();
                project(layer, 0, num_queries);
            } else {
                project(layer, 0, num_queries + num_others);
            }
            attend_all(layer);
            add_product(engine_.layers[layer].output, engine_.attended.floats(), engine_.attention_stride);
            each_row([&](int64_t row, Scratch &) { norm(engine_.layers[layer].norm2, row); });
            gate(layer);
            add_product(engine_.layers[layer].down, engine_.inner.floats(), engine_.inner_stride);
            if (engine_.is_topk(layer) || !is_last) {
                each_row([&](int64_t row, Scratch &scratch) {
                    if (engine_.is_topk(layer)) {
                        sparsify(engine_, layer, row, scratch);
                        if (is_wiped(layer, row)) wipe(layer, row);
                    }
                    if (!is_last) norm(engine_.layers[layer + 1].norm1, row);
                });
            }
        }
        if (engine_.is_topk(sizes_.num_layers - 1)) finish_states();
        read_logits();
    }

private:
    /// A row whose logits are wanted: to draw a piece's token, or for the log-probability of `target`.
    struct Wanted {
        int32_t row, piece, target, num_top;
        bool draws, scores;
        int64_t logprob, top;  // where the results go
        bool is_finite = true;
    };

    template <class Work> void each_row(const Work &work) {
        auto item = [&](int64_t row, int thread) { work(row, engine_.scratch[thread]); };
        if (num_rows_ <= FEW_ROWS)
            engine_.pool.run_here(num_rows_, item);
        else
            engine_.pool.run(num_rows_, item);
    }

    /// Panels that one thread takes together, so that what it fetches ahead is its own, and all threads end together.
    int64_t group_size(int64_t num_columns) const {
        return std::clamp<int64_t>(num_columns / (4 * int64_t(engine_.scratch.size())), 1, 8);
    }

    /// Call `work(column, first row, rows, scratch)` for every column of every chunk of the rows.
    template <class Work> void each_column(int64_t num_columns, const Work &work) {
        const int64_t size = group_size(num_columns), num_groups = (num_columns + size - 1) / size;
        engine_.pool.run(num_groups * chunks_.count, [&](int64_t item, int thread) {
            const int64_t chunk = item % chunks_.count, first = item / chunks_.count * size;
            for (int64_t column = first; column < std::min(first + size, num_columns); ++column)
                work(column, chunks_.begin(chunk), chunks_.size(chunk), engine_.scratch[thread]);
        });
    }

    void norm(const Memory &weight, int64_t row) {
        rms_norm(engine_.hidden_of(row), weight.floats(), sizes_.hidden_size, sizes_.rms_norm_eps, engine_.normed_of(row));
    }

    void lay_out() {
        const topk_tables &tables = engine_.tables;
        const int64_t tile_queries = engine_.tile_rows / engine_.groups;
        int32_t row = 0;
        engine_.tiles.clear();
        for (int32_t i = 0; i < io_.num_pieces; ++i) {
            const topk_piece &piece = io_.pieces[i];
            const int32_t *table = engine_.table_of(piece.slot);
            const int64_t num_interventions = tables.num_interventions[piece.slot];
            io_.drawn_ids[i] = -1;
            io_.is_finite[i] = 1;
            for (int32_t q = 0; q < piece.count; q += int32_t(tile_queries))
                engine_.tiles.push_back({row + q, std::min(piece.count - q, int32_t(tile_queries))});
            for (int32_t n = 0; n < piece.count; ++n, ++row) {
                const int32_t position = piece.start + n, token = io_.token_ids[row];
                engine_.rows[row] = {
                    i, piece.slot, position, token, table[position / sizes_.block_size], position % sizes_.block_size,
                    tables.is_special[token] != 0, (piece.flags & TOPK_COUNTS) != 0, num_interventions > 0, false};
                if (num_interventions > 0) {
                    std::fill_n(engine_.tally_of(row), num_interventions * NUM_TALLIES, 0.0);
                    std::fill_n(engine_.applied_of(row), num_interventions, uint8_t(0));
                }
            }
        }
    }

    /// Put the rows' states of the layers before the first where the steps before would have left them.
    void resume() {
        const int64_t num_layers = io_.first_layer;
        const int32_t *counts = io_.start_counts, *indices = io_.start_indices;
        const float *values = io_.start_values;
        for (int64_t row = 0; row < num_rows_; ++row) {
            for (int layer = 0; layer < num_layers; ++layer, ++counts) {
                engine_.state_count_of(layer, row) = *counts;
                std::copy(indices, indices + *counts, engine_.state_indices_of(layer, row));
                std::copy(values, values + *counts, engine_.state_values_of(layer, row));
                indices += *counts;
                values += *counts;
            }
        }
        each_row([&](int64_t row, Scratch &) {
            float *hidden = engine_.hidden_of(row);
            std::fill(hidden, hidden + engine_.stride, 0.0f);
            const SparseRow state = engine_.state_of(int(num_layers - 1), row);
            for (int i = 0; i < state.count; ++i) hidden[state.indices[i]] = state.values[i];
            if (num_layers < sizes_.num_layers) norm(engine_.layers[size_t(num_layers)].norm1, row);
        });
    }

    bool is_wiped(int layer, int64_t row) const {
        return io_.wiped && io_.wiped[row * sizes_.num_topk_layers + layer];
    }

    void wipe(int layer, int64_t row) {
        float *hidden = engine_.hidden_of(row);
        std::fill(hidden, hidden + engine_.stride, 0.0f);
        engine_.state_count_of(layer, row) = 0;
    }

    void embed() {
        const Matrix &table = sizes_.is_tied ? engine_.unembedding : engine_.embedding;
        each_row([&](int64_t row, Scratch &) {
            table.read(engine_.rows[row].token, engine_.hidden_of(row));
            norm(engine_.layers[0].norm1, row);
        });
    }

    /// Whether the query-key-value product gathers the columns of nonzero entries; either way gives the same numbers.
    bool is_sparse(int layer) const {
        if (layer == 0 || !engine_.is_topk(layer - 1) || engine_.sparse_choice == 2) return false;
        if (!engine_.layers[layer].qkv.is_finite()) return false;
        return engine_.sparse_choice == 1 || 2 * engine_.state_width <= sizes_.hidden_size ||
               4 * sizes_.topk_k <= sizes_.hidden_size;
    }

    /// Heads of the queries, keys and values of all rows, rotated; keys and values go to the cache.
    void project(int layer, int64_t first_head, int64_t num_heads) {
        const Matrix &qkv = engine_.layers[layer].qkv;
        const int64_t head_panels = engine_.head_stride / PANEL, out_stride = engine_.head_stride;
        const bool sparse = is_sparse(layer) && num_rows_ == io_.num_rows;  // kept rows have left their states
        each_column(num_heads, [&](int64_t column, int64_t first, int count, Scratch &scratch) {
            const int64_t head = first_head + column;
            float *out = scratch.head.floats();
            for (int64_t part = 0; part < head_panels; ++part) {
                const int64_t panel = head * head_panels + part;
                if (sparse) {
                    alignas(64) float sums[PANEL];
                    for (int r = 0; r < count; ++r) {
                        const SparseRow state = engine_.state_of(layer - 1, first + r);
                        multiply_sparse(qkv, panel, engine_.normed_of(first + r), state.indices, state.count, sums);
                        std::copy(sums, sums + PANEL, out + r * out_stride + part * PANEL);
                    }
                } else {
                    multiply(qkv, panel, engine_.normed_of(first), engine_.stride, count, out + part * PANEL, out_stride);
                }
            }
            // The sum with 0 turns -0 into 0, of which the two ways may differ.
            for (int64_t i = 0; i < count * out_stride; ++i) out[i] += 0.0f;
            for (int r = 0; r < count; ++r) deliver(layer, head, first + r, out + r * out_stride);
        });
    }

    /// Bring one head of one row to where attention reads it.
    void deliver(int layer, int64_t head, int64_t number, float *values) {
        const Row &row = engine_.rows[number];
        const int64_t dim = sizes_.head_dim, heads = sizes_.num_heads, kv_heads = sizes_.num_kv_heads;
        if (head < heads + kv_heads) rotate(values, row.position);
        if (head < heads) {
            std::copy(values, values + dim, engine_.query.floats() + (number * heads + head) * dim);
        } else if (head < heads + kv_heads) {
            float *to = engine_.key_group(layer, row.block, int(head - heads), row.offset) + row.offset % LANES;
            for (int64_t d = 0; d < dim; ++d) to[d * LANES] = values[d];
        } else {
            for (int64_t panel = 0; panel < engine_.head_stride / PANEL; ++panel) {
                float *to = engine_.value_panel(layer, row.block, int(head - heads - kv_heads), panel);
                std::copy(values + panel * PANEL, values + (panel + 1) * PANEL, to + row.offset * PANEL);
            }
        }
    }

    void rotate(float *values, int64_t position) const {
        const int64_t half = sizes_.head_dim / 2;
        const float *cosines = engine_.cosines.floats() + position * half;
        const float *sines = engine_.sines.floats() + position * half;
        for (int64_t d = 0; d < half; ++d) {
            const float first = values[d], second = values[d + half];
            values[d] = first * cosines[d] - second * sines[d];
            values[d + half] = second * cosines[d] + first * sines[d];
        }
    }

    void attend_all(int layer) {
        const int64_t kv_heads = sizes_.num_kv_heads;
        engine_.pool.run(int64_t(engine_.tiles.size()) * kv_heads, [&](int64_t item, int thread) {
            attend(engine_, layer, engine_.tiles[item / kv_heads], int(item % kv_heads), engine_.scratch[thread]);
        });
    }

    /// hidden += x times the weights.
    void add_product(const Matrix &weights, const float *x, int64_t x_stride) {
        each_column(weights.num_panels(), [&](int64_t panel, int64_t first, int count, Scratch &scratch) {
            float *sums = scratch.head.floats();
            multiply(weights, panel, x + first * x_stride, x_stride, count, sums, PANEL);
            for (int r = 0; r < count; ++r) {
                float *to = engine_.hidden_of(first + r) + panel * PANEL;
                for (int c = 0; c < PANEL; ++c) to[c] += sums[r * PANEL + c];
            }
        });
    }

    /// inner = silu(gate) * up
    void gate(int layer) {
        const Matrix &gates = engine_.layers[layer].gate, &ups = engine_.layers[layer].up;
        each_column(gates.num_panels(), [&](int64_t panel, int64_t first, int count, Scratch &scratch) {
            float *g = scratch.head.floats(), *u = g + MAX_PRODUCT_ROWS * PANEL;
            const float *x = engine_.normed_of(first);
            multiply(gates, panel, x, engine_.stride, count, g, PANEL);
            multiply(ups, panel, x, engine_.stride, count, u, PANEL);
            for (int r = 0; r < count; ++r) {
                float *to = engine_.inner.floats() + (first + r) * engine_.inner_stride + panel * PANEL;
                for (int c = 0; c < PANEL; c += WIDTH) {
                    const Vec value = load(g + r * PANEL + c);
                    const Vec silu = value / (1.0f + exponential(-value));
                    store(to + c, silu * load(u + r * PANEL + c));
                }
            }
        });
    }

    /// What is to be reported of the rows' states, once the last TopK layer has run.
    void finish_states() {
        count_edits(engine_, num_rows_);
        write_traces();
        for (int64_t row = 0; row < num_rows_; ++row)
            if (engine_.rows[row].is_bad) io_.is_finite[engine_.rows[row].piece] = 0;
    }

    /// Continue with the rows whose logits are wanted; the last block needs the others only for keys and values.
    void keep_wanted() {
        std::vector<int32_t> kept;
        for (const Wanted &one : wanted_) kept.push_back(one.row);
        std::sort(kept.begin(), kept.end());
        kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
        if (int64_t(kept.size()) == num_rows_) return;
        engine_.tiles.clear();
        for (int32_t to = 0; to < int32_t(kept.size()); ++to) {
            const int32_t from = kept[size_t(to)];
            engine_.rows[size_t(to)] = engine_.rows[size_t(from)];
            engine_.tiles.push_back({to, 1});
            if (to == from) continue;
            std::copy_n(engine_.hidden_of(from), engine_.stride, engine_.hidden_of(to));
            std::copy_n(engine_.normed_of(from), engine_.stride, engine_.normed_of(to));
        }
        for (Wanted &one : wanted_)
            one.row = int32_t(std::lower_bound(kept.begin(), kept.end(), one.row) - kept.begin());
        num_rows_ = int64_t(kept.size());
        chunks_ = Chunks(num_rows_);
    }

    /// The states of traced rows, one row after the other, layers within.
    void write_traces() {
        int64_t num_entries = 0, row = 0, *offset = io_.trace_offsets;
        for (int64_t i = 0; i < io_.num_pieces; row += io_.pieces[i++].count) {
            const topk_piece &piece = io_.pieces[i];
            for (int64_t n = piece.trace_start; n < piece.trace_start + piece.trace_count; ++n) {
                for (int layer = 0; layer < sizes_.num_topk_layers; ++layer) {
                    const SparseRow state = engine_.state_of(layer, row + n);
                    std::copy(state.indices, state.indices + state.count, io_.trace_indices + num_entries);
                    std::copy(state.values, state.values + state.count, io_.trace_values + num_entries);
                    *offset++ = num_entries;
                    num_entries += state.count;
                }
            }
        }
        if (offset != io_.trace_offsets) *offset = num_entries;
        io_.num_traced = num_entries;
    }

    std::vector<Wanted> wanted_rows() const {
        std::vector<Wanted> wanted;
        int64_t top = 0;
        int32_t row = 0;
        for (int32_t i = 0; i < io_.num_pieces; ++i) {
            const topk_piece &piece = io_.pieces[i];
            row += piece.count;
            if (!(piece.flags & TOPK_DRAWS)) continue;
            const bool scores = (piece.flags & TOPK_SCORES) != 0;
            wanted.push_back({row - 1, i, -1, scores ? piece.num_top : 0, true, scores, i, top});
            top += wanted.back().num_top;
        }
        for (int64_t i = 0; i < io_.num_scores; ++i) {
            const topk_score &score = io_.scores[i];
            const int32_t piece = engine_.rows[score.row].piece;
            wanted.push_back({score.row, piece, score.target, score.num_top, false, true, io_.num_pieces + i, top});
            top += score.num_top;
        }
        return wanted;
    }

    void read_logits() {
        std::vector<Wanted> &wanted = wanted_;
        const int64_t total = int64_t(wanted.size());
        for (int64_t first = 0; first < total; first += MAX_PRODUCT_ROWS) {
            const int count = int(std::min<int64_t>(MAX_PRODUCT_ROWS, total - first));
            auto prepare = [&](int64_t i, int) {
                rms_norm(
                    engine_.hidden_of(wanted[first + i].row), engine_.final_norm.floats(), sizes_.hidden_size,
                    sizes_.rms_norm_eps, engine_.unembedded.floats() + i * engine_.stride);
            };
            engine_.pool.run_here(count, prepare);
            const int64_t num_panels = engine_.unembedding.num_panels(), size = group_size(num_panels);
            engine_.pool.run((num_panels + size - 1) / size, [&](int64_t group, int) {
                for (int64_t panel = group * size; panel < std::min((group + 1) * size, num_panels); ++panel)
                    multiply(
                        engine_.unembedding, panel, engine_.unembedded.floats(), engine_.stride, count,
                        engine_.logits.floats() + panel * PANEL, engine_.logit_stride);
            });
            auto read = [&](int64_t i, int thread) {
                read_row(wanted[first + i], engine_.logits.floats() + i * engine_.logit_stride, engine_.scratch[thread]);
            };
            engine_.pool.run(count, read);
        }
        for (const Wanted &row : wanted)
            if (!row.is_finite) io_.is_finite[row.piece] = 0;
    }

    void read_row(Wanted &wanted, float *logits, Scratch &scratch) {
        if (!all_finite(logits, engine_.logit_stride)) {
            wanted.is_finite = false;
            std::fill(logits, logits + engine_.logit_stride, 0.0f);
        }
        std::fill(logits + sizes_.vocab_size, logits + engine_.logit_stride, -INFINITY);
        int32_t target = wanted.target;
        if (wanted.draws) {
            const topk_piece &piece = io_.pieces[wanted.piece];
            target = io_.drawn_ids[wanted.piece] = draw(engine_, piece.slot, piece.num_drawn, logits, scratch);
        }
        if (!wanted.scores) return;
        const double normaliser = log_normaliser(logits, engine_.logit_stride);
        io_.logprobs[wanted.logprob] = float(double(logits[target]) - normaliser);
        most_probable(
            logits, sizes_.vocab_size, normaliser, wanted.num_top, io_.top_ids + wanted.top, io_.top_logprobs + wanted.top);
    }

    Engine &engine_;
    topk_step &io_;
    const topk_sizes &sizes_;
    int64_t num_rows_;
    Chunks chunks_;
    std::vector<Wanted> wanted_;
};

}  // namespace

void run_step(Engine &engine, topk_step &step) { Step(engine, step).run(); }

}  // namespace topk
