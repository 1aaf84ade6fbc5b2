#include "product.h"

#include <algorithm>
#include <type_traits>

namespace topk {
namespace {

// Inner indices of a panel that stay in the first-level cache while all rows pass over them: 8 kB, so that as many of
// the next ones, and the rows, have room beside them.
constexpr int64_t SLICE = 64;

TOPK_INLINE Vec widen(const float *from) { return load(from); }

TOPK_INLINE Vec widen(const uint16_t *from) {  // bfloat16
#if !defined(TOPK_PORTABLE) && defined(__AVX512F__)
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif !defined(TOPK_PORTABLE) && defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    BitVec bits;
    for (int i = 0; i < WIDTH; ++i) bits[i] = uint32_t(from[i]) << 16;
    return (Vec)bits;
#endif
}

TOPK_INLINE Vec widen(const int8_t *from) {
#if !defined(TOPK_PORTABLE) && defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif !defined(TOPK_PORTABLE) && defined(__AVX2__)
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    Vec out;
    for (int i = 0; i < WIDTH; ++i) out[i] = float(from[i]);
    return out;
#endif
}

template <class T> TOPK_INLINE void widen_all(const T *from, Vec (&out)[PER_PANEL]) {
    TOPK_UNROLL for (int v = 0; v < PER_PANEL; ++v) out[v] = widen(from + v * WIDTH);
}

/// The sums of ROWS rows over `depth` inner indices. Meanwhile fetches what follows `ahead`, if it is given, and leaves
/// the weights as floats at `widened`, if that is given.
template <int ROWS, class T, class Ahead>
TOPK_INLINE void chain(
    const float *x, int64_t stride, const T *weights, int64_t depth, float *out, int64_t out_stride, bool begins,
    const Ahead *ahead = nullptr, float *widened = nullptr) {
    Tile<ROWS, PER_PANEL> tile;
    if (begins)
        tile.clear();
    else
        tile.read(out, out_stride);
    for (int64_t k = 0; k < depth; ++k) {
        if (ahead) {
            const char *next = reinterpret_cast<const char *>(ahead + k * PANEL);
            TOPK_UNROLL for (size_t byte = 0; byte < PANEL * sizeof(Ahead); byte += 64) __builtin_prefetch(next + byte);
        }
        Vec w[PER_PANEL];
        widen_all(weights + k * PANEL, w);
        if (widened) {
            TOPK_UNROLL for (int v = 0; v < PER_PANEL; ++v) store(widened + k * PANEL + v * WIDTH, w[v]);
        }
        tile.add(x + k, stride, w);
    }
    tile.write(out, out_stride);
}

template <class T>
void multiply_panel(
    const T *weights, int64_t depth, const float *x, int64_t stride, int rows, float *out, int64_t out_stride) {
    constexpr bool IS_WIDE = std::is_same_v<T, float>;
    if (rows <= TILE_ROWS) {
        with_rows(rows, [&](auto count) { chain<count(), T, T>(x, stride, weights, depth, out, out_stride, true); });
        return;
    }
    alignas(64) float slice[IS_WIDE ? 1 : SLICE * PANEL];
    for (int64_t k = 0; k < depth; k += SLICE) {
        const int64_t length = std::min(SLICE, depth - k);
        const T *w = weights + k * PANEL, *next = w + length * PANEL;
        // The first tile reads the slice, the others fetch the next one: of this panel, or of the panel behind it.
        for_tiles(rows, [&](int first, auto count) {
            const float *from = x + first * stride + k;
            float *to = out + first * out_stride;
            if (first == 0)
                chain<count(), T, T>(from, stride, w, length, to, out_stride, k == 0, nullptr, IS_WIDE ? nullptr : slice);
            else if constexpr (IS_WIDE)
                chain<count(), float>(from, stride, w, length, to, out_stride, k == 0, next);
            else
                chain<count(), float>(from, stride, slice, length, to, out_stride, k == 0, next);
        });
    }
}

template <class T>
void multiply_gathered(const T *weights, const float *x, const int32_t *indices, int count, float *out) {
    constexpr int AHEAD = 6;
    Tile<1, PER_PANEL> tile;
    tile.clear();
    for (int i = 0; i < count; ++i) {
        if (i + AHEAD < count) {
            const char *next = reinterpret_cast<const char *>(weights + int64_t(indices[i + AHEAD]) * PANEL);
            for (size_t byte = 0; byte < PANEL * sizeof(T); byte += 64) __builtin_prefetch(next + byte);
        }
        Vec w[PER_PANEL];
        widen_all(weights + int64_t(indices[i]) * PANEL, w);
        tile.add(x + indices[i], 0, w);
    }
    tile.write(out, PANEL);
}

/// Call `body` with the panel's weights in the type they are stored in.
template <class Body> TOPK_INLINE void with_storage(const Matrix &weights, int64_t panel, const Body &body) {
    switch (weights.storage()) {
        case TOPK_FLOAT32: return body(weights.panel<float>(panel));
        case TOPK_BFLOAT16: return body(weights.panel<uint16_t>(panel));
        case TOPK_INT8: return body(weights.panel<int8_t>(panel));
    }
}

void scale(const float *scales, int rows, float *out, int64_t out_stride) {
    if (!scales) return;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < PANEL; ++c) out[r * out_stride + c] *= scales[c];
}

}  // namespace

void multiply(
    const Matrix &weights, int64_t panel, const float *x, int64_t stride, int rows, float *out, int64_t out_stride) {
    with_storage(weights, panel, [&](auto *data) {
        multiply_panel(data, weights.depth(), x, stride, rows, out, out_stride);
    });
    scale(weights.scales(panel), rows, out, out_stride);
}

void multiply_sparse(
    const Matrix &weights, int64_t panel, const float *x, const int32_t *indices, int count, float *out) {
    with_storage(weights, panel, [&](auto *data) { multiply_gathered(data, x, indices, count, out); });
    scale(weights.scales(panel), 1, out, PANEL);
}

}  // namespace topk
