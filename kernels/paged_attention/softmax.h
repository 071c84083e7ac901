// The online softmax: a tile's scores to weights, and results of spans of positions put together.
#pragma once

#include "../native/common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace native {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// A row's values before they are divided by their total weight, relative to the highest score, its peak (an exponent of
// 2).
struct Result {
    float* values;
    float total = 0, peak = NOTHING;

    // Those of other positions. Not inlined, so that it is computed in one way, to the bit.
    __attribute__((noinline)) void add(const float* others, float other_total, float other_peak, int64_t dim) {
        if (other_total == 0) return;  // nothing seen
        const float top = std::max(peak, other_peak), own = std::exp2(peak - top), other = std::exp2(other_peak - top);
        for (int64_t d = 0; d < dim; d += LANES)
            native::store(values + d, load(values + d) * own + load(others + d) * other);
        total = total * own + other_total * other;
        peak = top;
    }

    template <typename T>
    void store(T* to, int64_t dim) const {
        for (int64_t d = 0; d < dim; d += LANES) store_to(to, d, dim, load(values + d) / total);
    }
};

// A row's scores of a tile, of which it sees the first `visible`, to weights 2^(score - peak), 0 from there to
// `padded`. With scales of the positions' keys and values, scores are multiplied with the ones before, weights with the
// others after. Returns what the values so far are to be multiplied with.
template <typename O>
inline float weigh(float* scores, O* weights, int64_t visible, int64_t padded, float scale, const float* key_scales,
                   const float* value_scales, Result& result) {
    if (key_scales)
        for (int64_t j = 0; j < visible; j += LANES) store(scores + j, load(scores + j) * load(key_scales + j));
    const int64_t whole = visible / LANES * LANES;
    const i16x lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i16x seen = lane < int32_t(visible - whole);
    v16 top = splat(NOTHING);
    for (int64_t j = 0; j < whole; j += LANES) top = max(top, load(scores + j));
    if (whole < visible) {
        const v16 rest = load(scores + whole);
        top = max(top, seen ? rest : splat(NOTHING));
    }
    const float before = result.peak, peak = std::max(before, max(top) * scale);
    const float shrink = before == peak ? 1.0f : std::exp2(before - peak);
    v16 added{};
    constexpr bool precise = std::is_same_v<O, float>;
    int64_t j = 0;
    for (; j < whole; j += LANES) {
        const v16 weight = exp2<precise>(load(scores + j) * scale - peak);
        added += weight;
        store(weights + j, value_scales ? weight * load(value_scales + j) : weight);
    }
    if (j < visible) {
        const v16 rest = exp2<precise>(load(scores + j) * scale - peak), weight = seen ? rest : v16{};
        added += weight;
        store(weights + j, value_scales ? (seen ? weight * load(value_scales + j) : v16{}) : weight);
        j += LANES;
    }
    for (; j < padded; j += LANES) store(weights + j, v16{});
    result.peak = peak;
    result.total = result.total * shrink + sum(added);
    return shrink;
}

}  // namespace native
