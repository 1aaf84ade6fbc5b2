#include "product.h"

#include <algorithm>
#include <type_traits>

namespace topk {
namespace {

// Inner indices of a panel that stay in the first-level cache while all rows pass over them: 16 kB.
constexpr int64_t SLICE = 128;

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

template <int ROWS, class T>
TOPK_INLINE void chain(
    const float *x, int64_t stride, const T *weights, int64_t depth, float *out, int64_t out_stride, bool begins) {
    Tile<ROWS, PER_PANEL> tile;
    if (begins)
        tile.clear();
    else
        tile.read(out, out_stride);
    for (int64_t k = 0; k < depth; ++k) {
        Vec w[PER_PANEL];
        widen_all(weights + k * PANEL, w);
        tile.add(x + k, stride, w);
    }
    tile.write(out, out_stride);
}

template <class T>
void multiply_panel(
    const T *weights, int64_t depth, const float *x, int64_t stride, int rows, float *out, int64_t out_stride) {
    if (rows <= TILE_ROWS) {
        with_rows(rows, [&](auto count) { chain<count()>(x, stride, weights, depth, out, out_stride, true); });
        return;
    }
    alignas(64) float slice[std::is_same_v<T, float> ? 1 : SLICE * PANEL];
    for (int64_t k = 0; k < depth; k += SLICE) {
        const int64_t length = std::min(SLICE, depth - k);
        const float *w;
        if constexpr (std::is_same_v<T, float>) {
            w = weights + k * PANEL;
        } else {
            for (int64_t i = 0; i < length * PANEL; i += WIDTH) store(slice + i, widen(weights + k * PANEL + i));
            w = slice;
        }
        for_tiles(rows, [&](int first, auto count) {
            chain<count()>(x + first * stride + k, stride, w, length, out + first * out_stride, out_stride, k == 0);
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
