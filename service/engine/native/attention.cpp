// Attention on the paged cache. Keys stand transposed in groups of 16 positions, so that a score, too, is one chain of
// multiply-adds over the head's dimensions; values stand in panels of 32 dimensions, summed position by position.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine.h"
#include "product.h"

namespace topk {
namespace {

/// Scores of ROWS queries against GROUPS groups of 16 keys, into `out` [ROWS][GROUPS * 16].
template <int ROWS, int GROUPS>
TOPK_INLINE void score(const float *queries, int64_t dim, const float *const (&keys)[GROUPS], float *out, int64_t stride) {
    Tile<ROWS, GROUPS * PER_LANES> tile;
    tile.clear();
    for (int64_t d = 0; d < dim; ++d) {
        Vec k[GROUPS * PER_LANES];
        TOPK_UNROLL for (int g = 0; g < GROUPS; ++g) {
            TOPK_UNROLL for (int v = 0; v < PER_LANES; ++v)
                k[g * PER_LANES + v] = load(keys[g] + d * LANES + v * WIDTH);
        }
        tile.add(queries + d, dim, k);
    }
    tile.write(out, stride);
}

/// Turn the scores of `count` positions into weights, zero from there to `end`; returns their sum.
float soften(float *scores, int64_t count, int64_t end, float scale) {
    constexpr float INF = std::numeric_limits<float>::infinity();
    const int64_t padded_count = round_up(count, LANES);
    std::fill(scores + count, scores + padded_count, -INF);
    Lanes top = Lanes::filled(-INF);
    for (int64_t i = 0; i < padded_count; i += LANES) {
        Lanes s = Lanes::at(scores + i);
        TOPK_UNROLL for (int v = 0; v < PER_LANES; ++v) {
            s.v[v] *= splat(scale);
            top.v[v] = larger(s.v[v], top.v[v]);
        }
        s.put(scores + i);
    }
    const Vec largest = splat(top.largest());
    Lanes sum = Lanes::zero();
    for (int64_t i = 0; i < padded_count; i += LANES) {
        Lanes s = Lanes::at(scores + i);
        TOPK_UNROLL for (int v = 0; v < PER_LANES; ++v) {
            s.v[v] = exponential(s.v[v] - largest);
            sum.v[v] += s.v[v];
        }
        s.put(scores + i);
    }
    if (end > padded_count) std::fill(scores + padded_count, scores + end, 0.0f);
    return sum.sum();
}

}  // namespace

void attend(Engine &engine, int layer, const QueryTile &tile, int head, Scratch &scratch) {
    const topk_sizes &sizes = engine.sizes;
    const int64_t dim = sizes.head_dim, groups = engine.groups, block_size = sizes.block_size;
    const Row &first = engine.rows[tile.first_row];
    const int32_t *table = engine.table_of(first.slot);
    const int num_rows = int(tile.num_queries * groups);  // row = query * groups + head of the group
    const int64_t limit = first.position + tile.num_queries;  // positions that the last query sees
    const int64_t num_groups = round_up(limit, LANES) / LANES, length = num_groups * LANES;
    float *queries = scratch.queries.floats(), *scores = scratch.scores.floats(), *seen = scratch.seen.floats();

    for (int64_t q = 0; q < tile.num_queries; ++q) {
        const float *from = engine.query.floats() + ((tile.first_row + q) * sizes.num_heads + head * groups) * dim;
        std::copy(from, from + groups * dim, queries + q * groups * dim);
    }
    auto keys_of = [&](int64_t group) -> const float * {
        const int64_t position = group * LANES;
        return engine.key_group(layer, table[position / block_size], head, position % block_size);
    };
    int64_t group = 0;
    for (; group + 2 <= num_groups; group += 2) {
        const float *const keys[2] = {keys_of(group), keys_of(group + 1)};
        for_tiles(num_rows, [&](int r, auto count) {
            score<count(), 2>(queries + r * dim, dim, keys, scores + r * length + group * LANES, length);
        });
    }
    if (group < num_groups) {
        const float *const keys[1] = {keys_of(group)};
        for_tiles(num_rows, [&](int r, auto count) {
            score<count(), 1>(queries + r * dim, dim, keys, scores + r * length + group * LANES, length);
        });
    }

    const float scale = 1.0f / std::sqrt(float(dim));
    float *sums = seen + num_rows * engine.head_stride;
    for (int r = 0; r < num_rows; ++r)
        sums[r] = soften(scores + r * length, first.position + r / groups + 1, length, scale);

    // Positions past the limit belong to another sequence or to none: their weight is zero, but 0 * NaN is not.
    for (int64_t panel = 0; panel < engine.head_stride / PANEL; ++panel) {
        for_tiles(num_rows, [&](int r, auto count) {
            Tile<count(), PER_PANEL> sum;
            sum.clear();
            for (int64_t begin = 0; begin < limit; begin += block_size) {
                const float *values = engine.value_panel(layer, table[begin / block_size], head, panel);
                const int64_t size = std::min(block_size, limit - begin);
                const float *weights = scores + r * length + begin;
                for (int64_t i = 0; i < size; ++i) {
                    Vec v[PER_PANEL];
                    TOPK_UNROLL for (int part = 0; part < PER_PANEL; ++part)
                        v[part] = load(values + i * PANEL + part * WIDTH);
                    sum.add(weights + i, length, v);
                }
            }
            sum.write(seen + r * engine.head_stride + panel * PANEL, engine.head_stride);
        });
    }
    for (int r = 0; r < num_rows; ++r) {
        float *to = engine.attended.floats() + (tile.first_row + r / groups) * engine.attention_stride +
                    (head * groups + r % groups) * dim;
        const float *from = seen + r * engine.head_stride;
        // Zeros that later queries of the tile bring turn -0 into 0; so does the sum with 0, for every query alike.
        for (int64_t d = 0; d < dim; ++d) to[d] = from[d] / sums[r] + 0.0f;
    }
}

}  // namespace topk
