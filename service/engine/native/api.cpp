// The C interface: making, filling and ending an engine.
#include "api.h"

#include <algorithm>
#include <exception>
#include <new>

#include "engine.h"
#include "product.h"

using topk::Engine;

struct topk_engine {
    Engine engine;
    explicit topk_engine(const topk_sizes &sizes, std::shared_ptr<topk::Weights> shared = nullptr)
        : engine(sizes, std::move(shared)) {}
};

namespace topk {
namespace {

constexpr int64_t MOST = 1 << 24;  // of any size; products of three fit into 64 bits with room to spare

bool is_between(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

bool fits(const topk_sizes &s) {
    for (int32_t size : {s.vocab_size, s.hidden_size, s.intermediate_size, s.num_layers, s.num_heads, s.num_kv_heads,
                         s.head_dim, s.topk_k, s.num_blocks, s.block_size, s.max_rows, s.num_slots})
        if (!is_between(size, 1, MOST)) return false;
    return is_between(s.num_topk_layers, 0, s.num_layers) && s.topk_k <= s.hidden_size &&
           s.num_heads % s.num_kv_heads == 0 && s.head_dim % 2 == 0 && s.head_dim <= 4096 && s.num_heads <= 4096 &&
           s.block_size % LANES == 0 && int64_t(s.num_blocks) * s.block_size < int64_t(1) << 31 &&
           is_between(s.max_edits, 1, 256) && is_between(s.max_conditions, 1, 256) &&
           is_between(s.num_threads, 1, 1024) && is_between(s.storage, TOPK_FLOAT32, TOPK_INT8) &&
           s.rms_norm_eps > 0.0f && is_finite(s.rms_norm_eps) && is_between(s.select_abs, 0, 1) &&
           is_between(s.is_tied, 0, 1);
}

Memory floats(int64_t count) { return Memory(size_t(count) * sizeof(float)); }

int64_t panels(int64_t count) { return padded(count) / PANEL; }

/// Run `body`, and turn what it throws into a status: nothing may pass the C interface.
template <class Body> int guarded(const Body &body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return TOPK_NO_MEMORY;
    } catch (const std::exception &) {
        return TOPK_NO_MEMORY;  // no thread could be started
    }
}

enum { OF_MODEL = 3, OF_LAYER = 9 };  // weights of the model itself, and of each layer

/// Weights that are to be loaded.
std::shared_ptr<Weights> empty_weights(const topk_sizes &sizes) {
    const int64_t dim = sizes.head_dim, heads = sizes.num_heads, kv_heads = sizes.num_kv_heads;
    const auto storage = topk_storage(sizes.storage);
    auto weights = std::make_shared<Weights>();
    for (int layer = 0; layer < sizes.num_layers; ++layer) {
        Layer own;
        own.norm1 = floats(padded(sizes.hidden_size));
        own.norm2 = floats(padded(sizes.hidden_size));
        own.qkv = Matrix((heads + 2 * kv_heads) * panels(dim), sizes.hidden_size, storage);
        own.output = Matrix(panels(sizes.hidden_size), heads * dim, storage);
        own.gate = Matrix(panels(sizes.intermediate_size), sizes.hidden_size, storage);
        own.up = Matrix(panels(sizes.intermediate_size), sizes.hidden_size, storage);
        own.down = Matrix(panels(sizes.hidden_size), sizes.intermediate_size, storage);
        weights->layers.push_back(std::move(own));
    }
    weights->unembedding = Matrix(panels(sizes.vocab_size), sizes.hidden_size, storage);
    if (!sizes.is_tied) weights->embedding = Matrix(panels(sizes.vocab_size), sizes.hidden_size, storage);
    weights->final_norm = floats(padded(sizes.hidden_size));
    weights->is_loaded.resize(size_t(OF_MODEL + sizes.num_layers * OF_LAYER));
    weights->num_to_load = uint64_t(OF_MODEL + sizes.num_layers * OF_LAYER - sizes.is_tied);
    return weights;
}

/// Whether an engine of sizes `a` can read the weights of one of sizes `b`.
bool have_same_weights(const topk_sizes &a, const topk_sizes &b) {
    return a.vocab_size == b.vocab_size && a.hidden_size == b.hidden_size &&
           a.intermediate_size == b.intermediate_size && a.num_layers == b.num_layers && a.num_heads == b.num_heads &&
           a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim && a.num_topk_layers == b.num_topk_layers &&
           a.topk_k == b.topk_k && a.select_abs == b.select_abs && a.is_tied == b.is_tied && a.storage == b.storage &&
           a.rms_norm_eps == b.rms_norm_eps;
}

}  // namespace

Engine::Engine(const topk_sizes &given, std::shared_ptr<Weights> shared)
    : sizes(given), pool(given.num_threads), weights(shared ? std::move(shared) : empty_weights(given)),
      layers(weights->layers), embedding(weights->embedding), unembedding(weights->unembedding),
      final_norm(weights->final_norm) {
    const int64_t dim = sizes.head_dim, heads = sizes.num_heads, kv_heads = sizes.num_kv_heads;
    const int64_t num_rows = sizes.max_rows;
    groups = heads / kv_heads;
    head_stride = padded(dim);
    stride = padded(sizes.hidden_size);
    inner_stride = padded(sizes.intermediate_size);
    logit_stride = padded(sizes.vocab_size);
    attention_stride = padded(heads * dim);
    tile_rows = std::max<int64_t>(24 / groups, 1) * groups;
    table_layers = std::max(1, sizes.num_topk_layers);
    state_width = sizes.topk_k == sizes.hidden_size ? sizes.hidden_size
                                                    : std::min(sizes.hidden_size, sizes.topk_k + sizes.max_edits);
    key_block = kv_heads * dim * sizes.block_size;
    value_block = kv_heads * head_stride * sizes.block_size;

    const int64_t num_blocks = int64_t(sizes.num_layers) * (sizes.num_blocks + 1);
    keys = floats(num_blocks * key_block);
    values = floats(num_blocks * value_block);
    rows.resize(size_t(num_rows));
    tiles.reserve(size_t(num_rows));
    hidden = floats(num_rows * stride);
    normed = floats(num_rows * stride);
    query = floats(num_rows * heads * dim);
    attended = floats(num_rows * attention_stride);
    inner = floats(num_rows * inner_stride);
    logits = floats(MAX_PRODUCT_ROWS * logit_stride);
    unembedded = floats(MAX_PRODUCT_ROWS * stride);
    state_indices = floats(table_layers * num_rows * state_width);
    state_values = floats(table_layers * num_rows * state_width);
    state_counts = floats(table_layers * num_rows);
    row_tallies = Memory(size_t(num_rows * sizes.max_edits * NUM_TALLIES) * sizeof(double));
    row_applied = Memory(size_t(num_rows * sizes.max_edits));
    scratch.resize(size_t(sizes.num_threads));
    for (Scratch &own : scratch) {
        own.head = floats(MAX_PRODUCT_ROWS * std::max<int64_t>(head_stride, 2 * PANEL));
        own.scores = floats(tile_rows * round_up(int64_t(sizes.num_blocks) * sizes.block_size, LANES));
        own.queries = floats(tile_rows * dim);
        own.seen = floats(tile_rows * (head_stride + 1));
        own.keys = floats(stride);
        own.raw = floats(stride);
        own.chosen = floats(2 * (sizes.hidden_size + 1));
        own.logits = floats(logit_stride);
        own.candidates.reserve(size_t(sizes.vocab_size));
    }
}

static bool pack_heads(Matrix &matrix, int64_t first_head, int64_t num_heads, int64_t dim, const float *data) {
    const int64_t depth = matrix.depth();
    for (int64_t head = 0; head < num_heads; ++head)
        if (!matrix.pack((first_head + head) * panels(dim), data + head * dim * depth, dim)) return false;
    return true;
}

static int load(Engine &engine, int weight, int at, const float *data, int64_t num_rows, int64_t num_columns) {
    const topk_sizes &s = engine.sizes;
    const bool of_layer = weight > TOPK_FINAL_NORM;
    if (!data || !is_between(weight, TOPK_EMBEDDING, TOPK_DOWN)) return TOPK_BAD_ARGUMENT;
    if (of_layer && !is_between(at, 0, s.num_layers - 1)) return TOPK_BAD_ARGUMENT;
    if (weight == TOPK_EMBEDDING && s.is_tied) return TOPK_BAD_ARGUMENT;
    const int64_t hidden = s.hidden_size, dim = s.head_dim, heads = s.num_heads, kv_heads = s.num_kv_heads;
    auto is_shape = [&](int64_t rows, int64_t columns) { return num_rows == rows && num_columns == columns; };
    auto copy_norm = [&](Memory &target) {
        if (!is_shape(1, hidden)) return int(TOPK_BAD_ARGUMENT);
        std::copy(data, data + hidden, target.floats());
        return int(TOPK_OK);
    };
    auto pack = [&](Matrix &matrix, int64_t rows, int64_t columns) {
        if (!is_shape(rows, columns)) return int(TOPK_BAD_ARGUMENT);
        return matrix.pack(0, data, rows) ? int(TOPK_OK) : int(TOPK_BAD_WEIGHT);
    };
    auto pack_projection = [&](Matrix &matrix, int64_t first, int64_t count) {
        if (!is_shape(count * dim, hidden)) return int(TOPK_BAD_ARGUMENT);
        return pack_heads(matrix, first, count, dim, data) ? int(TOPK_OK) : int(TOPK_BAD_WEIGHT);
    };
    Layer &layer = engine.layers[of_layer ? size_t(at) : 0];
    int status = TOPK_BAD_ARGUMENT;
    switch (weight) {
        case TOPK_EMBEDDING: status = pack(engine.embedding, s.vocab_size, hidden); break;
        case TOPK_UNEMBEDDING: status = pack(engine.unembedding, s.vocab_size, hidden); break;
        case TOPK_FINAL_NORM: status = copy_norm(engine.final_norm); break;
        case TOPK_NORM1: status = copy_norm(layer.norm1); break;
        case TOPK_NORM2: status = copy_norm(layer.norm2); break;
        case TOPK_Q: status = pack_projection(layer.qkv, 0, heads); break;
        case TOPK_K: status = pack_projection(layer.qkv, heads, kv_heads); break;
        case TOPK_V: status = pack_projection(layer.qkv, heads + kv_heads, kv_heads); break;
        case TOPK_O: status = pack(layer.output, hidden, heads * dim); break;
        case TOPK_GATE: status = pack(layer.gate, s.intermediate_size, hidden); break;
        case TOPK_UP: status = pack(layer.up, s.intermediate_size, hidden); break;
        case TOPK_DOWN: status = pack(layer.down, hidden, s.intermediate_size); break;
    }
    if (status) return status;
    const size_t number = size_t(of_layer ? OF_MODEL + at * OF_LAYER + weight - OF_MODEL : weight);
    engine.weights->num_loaded += !engine.weights->is_loaded[number];
    engine.weights->is_loaded[number] = true;
    return TOPK_OK;
}

static bool is_whole(const topk_tables &t) {
    for (const void *table : {(const void *)t.edit_ints, (const void *)t.edit_floats, (const void *)t.conditions,
                              (const void *)t.thresholds, (const void *)t.num_edits, (const void *)t.num_conditions,
                              (const void *)t.num_interventions, (const void *)t.tally, (const void *)t.num_positions,
                              (const void *)t.first, (const void *)t.last, (const void *)t.temperature,
                              (const void *)t.top_p, (const void *)t.min_p, (const void *)t.presence,
                              (const void *)t.frequency, (const void *)t.top_k, (const void *)t.seed,
                              (const void *)t.has_bias, (const void *)t.bias, (const void *)t.counts,
                              (const void *)t.is_special, (const void *)t.block_tables})
        if (!table) return false;
    return true;
}

}  // namespace topk

int topk_abi(void) { return TOPK_ABI; }

const char *topk_isa(void) { return topk::ISA; }

int topk_create(const topk_sizes *sizes, topk_engine **engine) {
    if (!sizes || !engine) return TOPK_BAD_ARGUMENT;
    if (sizes->struct_bytes != sizeof *sizes) return TOPK_BAD_ABI;
    if (!topk::fits(*sizes)) return TOPK_BAD_ARGUMENT;
    return topk::guarded([&] {
        *engine = new topk_engine(*sizes);
        return int(TOPK_OK);
    });
}

int topk_create_beside(const topk_engine *other, const topk_sizes *sizes, topk_engine **engine) {
    if (!other || !sizes || !engine) return TOPK_BAD_ARGUMENT;
    if (sizes->struct_bytes != sizeof *sizes) return TOPK_BAD_ABI;
    if (!topk::fits(*sizes) || !topk::have_same_weights(*sizes, other->engine.sizes)) return TOPK_BAD_ARGUMENT;
    if (other->engine.weights->num_loaded != other->engine.weights->num_to_load) return TOPK_NOT_LOADED;
    return topk::guarded([&] {
        *engine = new topk_engine(*sizes, other->engine.weights);
        return int(TOPK_OK);
    });
}

void topk_destroy(topk_engine *engine) { delete engine; }

int topk_load(topk_engine *engine, int weight, int layer, const float *data, int64_t rows, int64_t columns) {
    if (!engine) return TOPK_BAD_ARGUMENT;
    if (engine->engine.weights.use_count() > 1) return TOPK_BAD_ARGUMENT;  // another engine may be reading them
    return topk::guarded([&] { return topk::load(engine->engine, weight, layer, data, rows, columns); });
}

int topk_bind(topk_engine *engine, const topk_tables *tables) {
    if (!engine || !tables) return TOPK_BAD_ARGUMENT;
    if (tables->struct_bytes != sizeof *tables) return TOPK_BAD_ABI;
    if (!topk::is_whole(*tables)) return TOPK_BAD_ARGUMENT;
    engine->engine.tables = *tables;
    engine->engine.is_bound = true;
    return TOPK_OK;
}

int topk_rope(topk_engine *engine, const float *cosines, const float *sines, int64_t positions) {
    if (!engine || !cosines || !sines || positions < 1 || positions >= int64_t(1) << 31) return TOPK_BAD_ARGUMENT;
    return topk::guarded([&] {
        Engine &e = engine->engine;
        const int64_t count = positions * (e.sizes.head_dim / 2);
        topk::Memory c = topk::floats(count), s = topk::floats(count);
        std::copy(cosines, cosines + count, c.floats());
        std::copy(sines, sines + count, s.floats());
        e.cosines = std::move(c);
        e.sines = std::move(s);
        e.num_positions = positions;
        return int(TOPK_OK);
    });
}

int64_t topk_trace_width(const topk_engine *engine) { return engine ? engine->engine.state_width : 0; }

int topk_prefer_sparse(topk_engine *engine, int how) {
    if (!engine || how < 0 || how > 2) return TOPK_BAD_ARGUMENT;
    engine->engine.sparse_choice = how;
    return TOPK_OK;
}

int topk_copy_block(topk_engine *engine, int32_t from, int32_t to) {
    if (!engine) return TOPK_BAD_ARGUMENT;
    Engine &e = engine->engine;
    if (!topk::is_between(from, 1, e.sizes.num_blocks) || !topk::is_between(to, 1, e.sizes.num_blocks))
        return TOPK_BAD_BLOCK;
    for (int layer = 0; layer < e.sizes.num_layers; ++layer) {
        const float *keys = e.key_group(layer, from, 0, 0), *values = e.value_panel(layer, from, 0, 0);
        std::copy(keys, keys + e.key_block, e.key_group(layer, to, 0, 0));
        std::copy(values, values + e.value_block, e.value_panel(layer, to, 0, 0));
    }
    return TOPK_OK;
}

int topk_run(topk_engine *engine, topk_step *step) {
    if (!engine || !step) return TOPK_BAD_ARGUMENT;
    return topk::guarded([&] {
        if (int status = topk::check_step(engine->engine, *step)) return status;
        topk::run_step(engine->engine, *step);
        return int(TOPK_OK);
    });
}
