// Products of rows with packed weights. An output element is one chain of fused multiply-adds in ascending order of
// the inner index, whatever stands beside it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "matrix.h"
#include "simd.h"

namespace topk {

inline constexpr int MAX_PRODUCT_ROWS = 64;

/// out [rows][32] = x [rows][depth] times one panel; the strides are floats from one row to the next.
void multiply(
    const Matrix &weights, int64_t panel, const float *x, int64_t stride, int rows, float *out, int64_t out_stride);

/// The same of one row whose entries other than those at `indices`, ascending, are zero. Equal to `multiply` but for
/// the sign of a zero, if the weights are finite: a multiply-add of zero changes no sum.
void multiply_sparse(
    const Matrix &weights, int64_t panel, const float *x, const int32_t *indices, int count, float *out);

/// The accumulators of ROWS rows and VECS * WIDTH columns.
template <int ROWS, int VECS> struct Tile {
    Vec sum[ROWS][VECS];

    TOPK_INLINE void clear() {
        TOPK_UNROLL for (int r = 0; r < ROWS; ++r) {
            TOPK_UNROLL for (int v = 0; v < VECS; ++v) sum[r][v] = Vec{};
        }
    }

    TOPK_INLINE void read(const float *from, int64_t stride) {
        TOPK_UNROLL for (int r = 0; r < ROWS; ++r) {
            TOPK_UNROLL for (int v = 0; v < VECS; ++v) sum[r][v] = load(from + r * stride + v * WIDTH);
        }
    }

    TOPK_INLINE void write(float *to, int64_t stride) const {
        TOPK_UNROLL for (int r = 0; r < ROWS; ++r) {
            TOPK_UNROLL for (int v = 0; v < VECS; ++v) store(to + r * stride + v * WIDTH, sum[r][v]);
        }
    }

    /// Multiply-add the values `x[r * stride]` with the weights of one inner index.
    TOPK_INLINE void add(const float *x, int64_t stride, const Vec (&weights)[VECS]) {
        TOPK_UNROLL for (int r = 0; r < ROWS; ++r) {
            const Vec value = splat(x[r * stride]);
            TOPK_UNROLL for (int v = 0; v < VECS; ++v) sum[r][v] = fma(value, weights[v], sum[r][v]);
        }
    }
};

/// Call `body` with a compile-time number of rows, for `rows` in 1 … TILE_ROWS.
template <int ROWS = TILE_ROWS, class Body> TOPK_INLINE void with_rows(int rows, const Body &body) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return with_rows<ROWS - 1>(rows, body);
    }
    body(std::integral_constant<int, ROWS>{});
}

/// Call `body(first row, compile-time number of rows)` for tiles of nearly equal size that cover `rows`.
template <class Body> TOPK_INLINE void for_tiles(int rows, const Body &body) {
    const int num_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int first = rows * tile / num_tiles, end = rows * (tile + 1) / num_tiles;
        with_rows(end - first, [&](auto count) { body(first, count); });
    }
}

}  // namespace topk
