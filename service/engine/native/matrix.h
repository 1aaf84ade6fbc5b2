// Weights, packed once for reading in one stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "api.h"
#include "simd.h"

namespace topk {

/// Memory that begins at a page, zeroed, in huge pages where the system has them.
class Memory {
public:
    Memory() = default;
    explicit Memory(size_t bytes);
    ~Memory();
    Memory(Memory &&other) noexcept;
    Memory &operator=(Memory &&other) noexcept;

    template <class T> T *as() { return static_cast<T *>(data_); }
    template <class T> const T *as() const { return static_cast<const T *>(data_); }
    float *floats() { return as<float>(); }
    const float *floats() const { return as<float>(); }
    explicit operator bool() const { return data_ != nullptr; }

private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

/// Rows of `count` floats, rounded up to whole panels; what lies beyond the count stays zero.
inline int64_t padded(int64_t count) { return round_up(count, PANEL); }

/// A matrix [columns][depth] in panels of 32 output columns: one inner index after the other, 32 values each.
class Matrix {
public:
    Matrix() = default;
    Matrix(int64_t num_panels, int64_t depth, topk_storage storage);

    /// Pack `count` rows of `data` `[count][depth]` as the columns from the beginning of `panel` on.
    /// Returns false if a value is not finite and the storage type cannot represent it.
    bool pack(int64_t panel, const float *data, int64_t count);

    /// Column `column` as float32, `[depth]`: a row of the embedding, if this is the unembedding.
    void read(int64_t column, float *out) const;

    template <class T> const T *panel(int64_t number) const { return data_.as<T>() + number * depth_ * PANEL; }
    /// What each column of a panel is to be multiplied by, [32]; null: 1.
    const float *scales(int64_t panel) const { return scales_ ? scales_.floats() + panel * PANEL : nullptr; }
    int64_t num_panels() const { return num_panels_; }
    int64_t depth() const { return depth_; }
    topk_storage storage() const { return storage_; }
    bool is_finite() const { return is_finite_; }

private:
    int64_t num_panels_ = 0, depth_ = 0;
    topk_storage storage_ = TOPK_FLOAT32;
    bool is_finite_ = true;
    Memory data_, scales_;
};

}  // namespace topk
