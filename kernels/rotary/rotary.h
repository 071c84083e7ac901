// One head's rotation. Contract: kernels/rotary/__init__.py.
#pragma once

#include "../native/common.h"

namespace native {

// x and y: `dim` values, y not within x; cos and sin: a token's row, laid out as the contract says.
template <typename T, typename U>
inline void rotate(const T* x, const float* cos, const float* sin, U* y, int64_t dim) {
    const int64_t half = dim / 2;
    const T* high = x + half;
    const float *c = cos + half, *s = sin + half;
    const int64_t whole = half / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 a = load(x + i), b = load(high + i), cs = load(c + i), sn = load(s + i);
        store(y + i, a * cs - b * sn);
        store(y + half + i, b * cs + a * sn);
    }
    for (int64_t i = whole; i < half; ++i) {
        const float a = load1(x + i), b = load1(high + i);
        store1(y + i, a * c[i] - b * s[i]);
        store1(y + half + i, b * c[i] + a * s[i]);
    }
}

}  // namespace native
