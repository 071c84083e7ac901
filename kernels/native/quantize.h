// Rows to uint8, and sums of their products back to floats.
#pragma once

#include "hadamard.h"
#include "panels.h"

namespace native {

// How a row was made uint8: x is about scale * (x_q - zero).
struct Grid {
    float scale;
    int32_t zero;
};

// How the rows of a layer are made uint8: on this grid or, where its scale is 0, each on its own, and rotated before in
// blocks of so many values (hadamard.h), if these are more than 1.
struct GivenGrid {
    float scale;
    int32_t zero;
    int64_t rotation = 1;
};

// The grid of a row's own range, widened to hold 0. A row that is not finite gets a NaN scale.
template <typename T>
inline Grid fit_grid(const T* x, int64_t size) {
    const int64_t whole = size / LANES * LANES;
    v16 low{}, high{}, check{};
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 v = load(x + i);
        low = min(v, low);
        high = max(v, high);
        check += v * 0.0f;
    }
    float lowest = -max(-low), highest = max(high), rest = sum(check);
    for (int64_t i = whole; i < size; ++i) {
        const float v = load1(x + i);
        lowest = v < lowest ? v : lowest;
        highest = v > highest ? v : highest;
        rest += v * 0.0f;
    }
    const float range = (highest - lowest) / 255.0f, scale = (range > 1e-30f ? range : 1e-30f) + rest;
    return {scale, rest == 0 ? int32_t(__builtin_rintf(-lowest * (1.0f / scale))) : 0};
}

// A row to uint8, padded to K, on `given` or, where its scale is 0, on a grid of its own. The scale of the grid that is
// returned is NaN for a row that is not finite, whose results must not be either.
template <typename T>
inline Grid quantize_row(const T* x, int64_t size, int64_t K, uint8_t* out, const GivenGrid& given) {
    if (given.rotation > 1) {
        static thread_local Scratch<float> memory;
        float* const rotated = memory.room(size);
        rotate_row(x, size, given.rotation, rotated);
        return quantize_row(rotated, size, K, out, {given.scale, given.zero});
    }
    const int64_t whole = size / LANES * LANES;
    Grid grid = given.scale == 0 ? fit_grid(x, size) : Grid{given.scale, given.zero};
    const float inverse = 1.0f / grid.scale;
    v16 check{};
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 v = load(x + i) * inverse;
        check += v * 0.0f;
        store_uint8(out + i, min(max(v, splat(-1e6f)), splat(1e6f)), grid.zero);
    }
    for (int64_t i = whole; i < size; ++i) {
        float v = load1(x + i) * inverse;
        check[0] += v * 0.0f;
        v = v < -1e6f ? -1e6f : v > 1e6f ? 1e6f : v;
        const int32_t q = v == v ? int32_t(__builtin_rintf(v)) + grid.zero : 0;
        out[i] = uint8_t(q < 0 ? 0 : q > 255 ? 255 : q);
    }
    std::memset(out + size, 0, K - size);
    grid.scale += sum(check);
    return grid;
}

// 16 sums of a row as floats, from a column on: as they are, or scaled where the rows are uint8.
struct Scaling {
    const float* scales;    // of the columns
    const int32_t* totals;  // of the columns' weights
    const Grid* grids;      // of the rows

    v16 operator()(const float* sums, int64_t, int64_t) const { return load(sums); }
    v16 operator()(const int32_t* sums, int64_t row, int64_t column) const {
        i16x sum, total;
        std::memcpy(&sum, sums, sizeof sum);
        std::memcpy(&total, totals + column, sizeof total);
        return __builtin_convertvector(sum - total * grids[row].zero, v16) * grids[row].scale * load(scales + column);
    }
};

}  // namespace native
