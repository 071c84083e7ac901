// What belongs to the columns of a packed weight (panels.h), with memory for whole panels.
#pragma once

#include "binding.h"
#include "panels.h"

namespace native {

// Values [N] of a weight whose `parts` lie interleaved: a panel of the first, a panel of the second, and so on.
template <typename T, typename F>
std::shared_ptr<T> make_whole_panels(int64_t num, int64_t parts, const F& value) {
    const int64_t size = num / parts;
    const auto whole = weights<T>(parts * round_up(size, PANEL));
    for (int64_t i = 0; i < num; ++i) {
        const int64_t part = i / size, column = i % size;
        whole.get()[(column / PANEL * parts + part) * PANEL + column % PANEL] = value(i);
    }
    return whole;
}

template <typename T>
std::shared_ptr<T> whole_panels(const View<const T, 1>& values, int64_t parts = 1) {
    return make_whole_panels<T>(values.shape[0], parts, [&](int64_t i) { return values.data[i]; });
}

// The sum of each of a weight's rows.
inline std::shared_ptr<int32_t> row_totals(const View<const int8_t, 2>& weight, int64_t parts = 1) {
    return make_whole_panels<int32_t>(weight.shape[0], parts, [&](int64_t row) {
        int32_t total = 0;
        for (int64_t k = 0; k < weight.shape[1]; ++k) total += weight.data[row * weight.shape[1] + k];
        return total;
    });
}

}  // namespace native
