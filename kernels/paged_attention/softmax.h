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

// A row's scores of a tile, of which it sees those from `first` to `last`, to weights 2^(score - peak); those from
// `begin` to `end` that it does not see weigh 0. With scales of the positions' keys and values, scores are multiplied
// with the ones before, weights with the others after. Returns what the values so far are to be multiplied with.
template <typename O>
inline float weigh(float* scores, O* weights, int64_t begin, int64_t first, int64_t last, int64_t end, float scale,
                   const float* key_scales, const float* value_scales, Result& result) {
    const int64_t head = first / LANES * LANES, inner = round_up(first, LANES),
                  whole = std::max(inner, last / LANES * LANES);
    if (key_scales)
        for (int64_t j = head; j < last; j += LANES) store(scores + j, load(scores + j) * load(key_scales + j));
    const i16x lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const auto seen = [&](int64_t j) { return (lane >= int32_t(first - j)) & (lane < int32_t(last - j)); };
    v16 top = splat(NOTHING);
    for (int64_t j = inner; j < whole; j += LANES) top = max(top, load(scores + j));
    const auto top_at = [&](int64_t j) __attribute__((always_inline)) {  // at an end; both may be in one place
        const v16 some = load(scores + j);
        top = max(top, seen(j) ? some : splat(NOTHING));
    };
    if (whole < last) top_at(whole);
    if (head < inner) top_at(head);
    const float before = result.peak, peak = std::max(before, max(top) * scale);
    const float shrink = before == peak ? 1.0f : std::exp2(before - peak);
    v16 added{};
    constexpr bool precise = std::is_same_v<O, float>;
    const auto weigh_at = [&](int64_t j) __attribute__((always_inline)) {
        const v16 all = exp2<precise>(load(scores + j) * scale - peak), weight = seen(j) ? all : v16{};
        added += weight;
        store(weights + j, value_scales ? (seen(j) ? weight * load(value_scales + j) : v16{}) : weight);
    };
    int64_t j = begin;
    for (; j < head; j += LANES) store(weights + j, v16{});
    if (j < inner) weigh_at(j), j += LANES;
    for (; j < whole; j += LANES) {
        const v16 weight = exp2<precise>(load(scores + j) * scale - peak);
        added += weight;
        store(weights + j, value_scales ? weight * load(value_scales + j) : weight);
    }
    if (j < last) weigh_at(j), j += LANES;
    for (; j < end; j += LANES) store(weights + j, v16{});
    result.peak = peak;
    result.total = result.total * shrink + sum(added);
    return shrink;
}

}  // namespace native
