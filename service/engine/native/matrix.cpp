#include "matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace topk {
namespace {

// Address Sanitizer does not watch mapped memory by itself: it is told of a guard behind each mapping.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t GUARD_BYTES = 4096;
void guard(void *end) { ASAN_POISON_MEMORY_REGION(end, GUARD_BYTES); }
void unguard(void *end) { ASAN_UNPOISON_MEMORY_REGION(end, GUARD_BYTES); }
#else
constexpr size_t GUARD_BYTES = 0;
void guard(void *) {}
void unguard(void *) {}
#endif

/// Round to nearest, ties to even; NaN stays NaN.
uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return uint16_t(bits >> 16 | 0x40u);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float from_bfloat16(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

}  // namespace

Memory::Memory(size_t bytes) : bytes_(bytes ? bytes : 1) {
    data_ = mmap(nullptr, bytes_ + GUARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) {
        data_ = nullptr;
        throw std::bad_alloc();
    }
    guard(static_cast<char *>(data_) + bytes_);
#ifdef MADV_HUGEPAGE
    if (bytes_ >= size_t(4) << 20) madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
}

Memory::~Memory() {
    if (!data_) return;
    unguard(static_cast<char *>(data_) + bytes_);
    munmap(data_, bytes_ + GUARD_BYTES);
}

Memory::Memory(Memory &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Memory &Memory::operator=(Memory &&other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

Matrix::Matrix(int64_t num_panels, int64_t depth, topk_storage storage)
    : num_panels_(num_panels), depth_(depth), storage_(storage) {
    const size_t bytes = storage == TOPK_FLOAT32 ? 4 : storage == TOPK_BFLOAT16 ? 2 : 1;
    data_ = Memory(size_t(num_panels * depth * PANEL) * bytes);
    if (storage == TOPK_INT8) scales_ = Memory(size_t(num_panels * PANEL) * sizeof(float));
}

bool Matrix::pack(int64_t panel, const float *data, int64_t count) {
    for (int64_t column = 0; column < count; ++column) {
        const float *row = data + column * depth_;
        const int64_t target = panel + column / PANEL, place = column % PANEL;
        const int64_t begin = target * depth_ * PANEL + place;
        float most = 0.0f;
        for (int64_t k = 0; k < depth_; ++k) {
            if (!topk::is_finite(row[k])) is_finite_ = false;
            most = std::max(most, std::fabs(row[k]));
        }
        if (storage_ == TOPK_FLOAT32) {
            for (int64_t k = 0; k < depth_; ++k) data_.as<float>()[begin + k * PANEL] = row[k];
        } else if (storage_ == TOPK_BFLOAT16) {
            for (int64_t k = 0; k < depth_; ++k) data_.as<uint16_t>()[begin + k * PANEL] = to_bfloat16(row[k]);
        } else {
            if (!is_finite_) return false;
            const float scale = most / 127.0f;
            scales_.floats()[target * PANEL + place] = scale;
            if (scale == 0.0f) continue;  // all zero, or too small to tell from it
            for (int64_t k = 0; k < depth_; ++k) {
                const float steps = std::nearbyint(row[k] / scale);
                data_.as<int8_t>()[begin + k * PANEL] = int8_t(std::min(127.0f, std::max(-127.0f, steps)));
            }
        }
    }
    return true;
}

void Matrix::read(int64_t column, float *out) const {
    const int64_t begin = column / PANEL * depth_ * PANEL + column % PANEL;
    if (storage_ == TOPK_FLOAT32) {
        const float *from = data_.as<float>() + begin;
        for (int64_t k = 0; k < depth_; ++k) out[k] = from[k * PANEL];
    } else if (storage_ == TOPK_BFLOAT16) {
        const uint16_t *from = data_.as<uint16_t>() + begin;
        for (int64_t k = 0; k < depth_; ++k) out[k] = from_bfloat16(from[k * PANEL]);
    } else {
        const int8_t *from = data_.as<int8_t>() + begin;
        const float scale = scales_.floats()[column];
        for (int64_t k = 0; k < depth_; ++k) out[k] = float(from[k * PANEL]) * scale;
    }
}

}  // namespace topk
