// Vectors of float, and what is computed with them. Every result is the same on every instruction set: products are
// fused only where they are written so, and reductions run over 16 lanes whatever the width of a register.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(TOPK_PORTABLE) && (defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)))
#include <immintrin.h>
#elif !defined(TOPK_PORTABLE) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace topk {

#if !defined(TOPK_PORTABLE) && defined(__AVX512F__)
inline constexpr int WIDTH = 16;     // floats of a register
inline constexpr int TILE_ROWS = 8;  // rows whose sums fit into the registers, 32 columns each
inline constexpr const char *ISA = "avx512";
#elif !defined(TOPK_PORTABLE) && defined(__AVX2__) && defined(__FMA__)
inline constexpr int WIDTH = 8;
inline constexpr int TILE_ROWS = 3;
inline constexpr const char *ISA = "avx2";
#elif !defined(TOPK_PORTABLE) && defined(__ARM_NEON)
inline constexpr int WIDTH = 4;
inline constexpr int TILE_ROWS = 3;
inline constexpr const char *ISA = "neon";
#else
inline constexpr int WIDTH = 4;
inline constexpr int TILE_ROWS = 3;
inline constexpr const char *ISA = "portable";
#endif

inline constexpr int LANES = 16;  // of every reduction
inline constexpr int PANEL = 32;  // output columns that are packed together
inline constexpr int PER_PANEL = PANEL / WIDTH, PER_LANES = LANES / WIDTH;

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t BitVec __attribute__((vector_size(WIDTH * 4)));

#define TOPK_UNROLL _Pragma("GCC unroll 32")
#define TOPK_INLINE inline __attribute__((always_inline))

TOPK_INLINE Vec splat(float x) { return x - Vec{}; }
TOPK_INLINE IntVec splat(int32_t x) { return x - IntVec{}; }

TOPK_INLINE Vec load(const float *from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

TOPK_INLINE void store(float *to, Vec v) { std::memcpy(to, &v, sizeof v); }

/// a * b + c, rounded once.
TOPK_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if !defined(TOPK_PORTABLE) && defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif !defined(TOPK_PORTABLE) && defined(__AVX2__) && defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif !defined(TOPK_PORTABLE) && defined(__ARM_NEON)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    Vec out;
    for (int i = 0; i < WIDTH; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
#endif
}

TOPK_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

/// e^x to two units in the last place; 0 below -87.3, 2^128 or more is 2^127.99; NaN stays NaN.
TOPK_INLINE Vec exponential(Vec x) {
    const Vec low = splat(-87.33654f), high = splat(88.37626f);
    const IntVec tiny = x < low;
    x = tiny ? low : x;
    x = x > high ? high : x;
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: the sum's low bits are the rounded whole number
    const Vec shifted = fma(x, splat(1.44269504f), magic);
    const Vec whole = shifted - magic;
    Vec rest = fma(whole, splat(-0.693359375f), x);
    rest = fma(whole, splat(2.12194440e-4f), rest);
    Vec p = splat(1.9875691500e-4f);  // Cephes' expf
    p = fma(p, rest, splat(1.3981999507e-3f));
    p = fma(p, rest, splat(8.3334519073e-3f));
    p = fma(p, rest, splat(4.1665795894e-2f));
    p = fma(p, rest, splat(1.6666665459e-1f));
    p = fma(p, rest, splat(5.0000001201e-1f));
    p = fma(p, rest * rest, rest) + splat(1.0f);
    const BitVec power = ((BitVec)shifted << 23) + (127u << 23);
    const Vec out = p * (Vec)power;
    return tiny ? Vec{} : out;
}

/// 16 lanes that are summed in one order.
struct Lanes {
    Vec v[PER_LANES];

    TOPK_INLINE static Lanes zero() { return filled(0.0f); }

    TOPK_INLINE static Lanes filled(float x) {
        Lanes out;
        TOPK_UNROLL for (int i = 0; i < PER_LANES; ++i) out.v[i] = splat(x);
        return out;
    }

    TOPK_INLINE static Lanes at(const float *from) {
        Lanes out;
        TOPK_UNROLL for (int i = 0; i < PER_LANES; ++i) out.v[i] = load(from + i * WIDTH);
        return out;
    }

    TOPK_INLINE void put(float *to) const {
        TOPK_UNROLL for (int i = 0; i < PER_LANES; ++i) store(to + i * WIDTH, v[i]);
    }

    float sum() const {
        float a[LANES];
        put(a);
        for (int half = LANES / 2; half; half /= 2)
            for (int i = 0; i < half; ++i) a[i] += a[i + half];
        return a[0];
    }

    float largest() const {
        float a[LANES];
        put(a);
        for (int half = LANES / 2; half; half /= 2)
            for (int i = 0; i < half; ++i) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
        return a[0];
    }
};

inline bool is_finite(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

/// Whether `count` values, a multiple of 16, hold neither infinities nor NaN.
inline bool all_finite(const float *values, int64_t count) {
    IntVec bad{};
    for (int64_t i = 0; i < count; i += WIDTH) {
        const BitVec bits = (BitVec)load(values + i) & 0x7f800000u;
        bad |= (IntVec)(bits == 0x7f800000u);
    }
    int32_t any = 0;
    for (int i = 0; i < WIDTH; ++i) any |= bad[i];
    return any == 0;
}

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

}  // namespace topk
