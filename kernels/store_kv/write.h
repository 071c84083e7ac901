// A row of a paged cache. Contract: kernels/store_kv/__init__.py.
#pragma once

#include "../native/common.h"

#include <algorithm>

namespace native {

// A row of a cache; of int8, as multiples of a scale that brings its largest value to 127.
template <typename T>
inline void write(const T* x, int64_t dim, T* row, float*) {
    std::memcpy(row, x, dim * sizeof(T));
}
template <typename T>
inline void write(const T* x, int64_t dim, int8_t* row, float* scale) {
    v16 top{};
    for (int64_t i = 0; i < dim; i += LANES) {
        const v16 value = load_from(x, i, dim);
        top = max(top, max(value, -value));
    }
    *scale = std::max(max(top), 1e-12f) / 127.0f;
    for (int64_t i = 0; i < dim; i += LANES) store_to(row, i, dim, load_from(x, i, dim) / *scale);
}

}  // namespace native
