// What the machine can do at most: reading memory, and multiplying and adding from registers, on several threads.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
using Vector = __m512;
static inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
#include <immintrin.h>
using Vector = __m256;
static inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__ARM_NEON)
#include <arm_neon.h>
using Vector = float32x4_t;
static inline Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
#else
#error "neither FMA nor NEON"
#endif

namespace {

constexpr int kWidth = sizeof(Vector) / sizeof(float);
constexpr int kChains = 12;  // latency times throughput of the machines we know, at least; within 16 registers

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs `work` on every thread until `seconds` have passed; it returns what one call of it did. The sum per second.
template <typename Work>
double rate(int num_threads, double seconds, Work work) {
    std::vector<std::thread> threads;
    std::vector<double> rates(num_threads);
    for (int i = 0; i < num_threads; ++i) {
        threads.emplace_back([&, i] {
            work(i);  // its pages and its clock are warm
            double done = 0, began = now(), elapsed = 0;
            while ((elapsed = now() - began) < seconds) done += work(i);
            rates[i] = done / elapsed;
        });
    }
    double sum = 0;
    for (int i = 0; i < num_threads; ++i) {
        threads[i].join();
        sum += rates[i];
    }
    return sum;
}

}  // namespace

// Bytes read per second, `num_bytes` in all, a part for each thread; 0: no memory.
extern "C" __attribute__((visibility("default"))) double machine_read(int64_t num_bytes, int num_threads,
                                                                      double seconds) {
    const int64_t part = num_bytes / num_threads / (8 * sizeof(Vector)) * 8 * kWidth;  // floats
    std::vector<float *> parts(num_threads);
    for (auto &at : parts) {
        at = static_cast<float *>(std::aligned_alloc(4096, (part * sizeof(float) + 4095) / 4096 * 4096));
        if (at == nullptr) return 0;
        for (int64_t i = 0; i < part; ++i) at[i] = 1.0f;
    }
    const double found = rate(num_threads, seconds, [&](int thread) {
        const Vector *from = reinterpret_cast<const Vector *>(parts[thread]);
        Vector sums[8] = {};
        for (int64_t i = 0; i < part / kWidth; i += 8)
            for (int j = 0; j < 8; ++j) sums[j] = sums[j] + from[i + j];
        for (auto &sum : sums) asm volatile("" : : "m"(sum));
        return static_cast<double>(part * sizeof(float));
    });
    for (auto at : parts) std::free(at);
    return found;
}

// Multiplications and additions per second, each counted.
extern "C" __attribute__((visibility("default"))) double machine_multiply_add(int num_threads, double seconds) {
    return rate(num_threads, seconds, [](int) {
        constexpr int kTurns = 100000;
        Vector sums[kChains] = {}, a{}, b{};
        asm volatile("" : "+m"(a), "+m"(b));  // unknown to the compiler
        for (int i = 0; i < kTurns; ++i)
#pragma GCC unroll 16
            for (int j = 0; j < kChains; ++j) sums[j] = fma(a, b, sums[j]);
        for (auto &sum : sums) asm volatile("" : : "m"(sum));
        return 2.0 * kWidth * kChains * kTurns;
    });
}
