// Packed weights: in panels (panels.h), with what belongs to their columns.
#pragma once

#include "binding.h"
#include "quantize.h"

#include <numeric>

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

inline std::shared_ptr<float> whole_panels(const View<const float, 1>& values, int64_t parts = 1) {
    return make_whole_panels<float>(values.shape[0], parts, [&](int64_t i) { return values.data[i]; });
}

// The weight of a layer in floats, or in int8 with scales, of `parts` that lie interleaved.
struct PackedWeight {
    Element operand;  // what it is multiplied with: floats, or uint8 on a grid
    int64_t parts, out_size = 0, in_size = 0;
    GivenGrid grid;  // of uint8
    std::shared_ptr<void> panels;
    std::shared_ptr<float> scales;    // of int8; floats: null
    std::shared_ptr<int32_t> totals;  // with uint8: the sum of each row of the weight

    PackedWeight(Tensor values_OI, std::optional<Tensor> scale_O, DType dtype, float scale, int32_t zero_point,
                 int64_t rotation, int64_t num_parts)
        : operand(dtype.element()), parts(num_parts), grid{scale, zero_point, rotation} {
        if (!scale_O) {
            with_element(operand, "operand", [&](auto x) { fill<decltype(x), decltype(x)>(values_OI); });
            return;
        }
        if (operand == Element::UINT8)
            fill<uint8_t, int8_t>(values_OI);
        else
            with_element(operand, "operand", [&](auto x) { fill<decltype(x), int8_t>(values_OI); });
        check_value(rotation == 1 || can_rotate(in_size, rotation),
                    "rotation must be 1, or a power of two from 16 to 512 that divides the inputs");
        scales = whole_panels(scale_O->packed<const float>("scale_O", {out_size}), parts);
    }

    // How many panels pair i has: two, or one at the end.
    int64_t panels_of(int64_t i) const {
        return std::min<int64_t>(2, parts * ((out_size / parts + PANEL - 1) / PANEL) - 2 * i);
    }

    template <typename A>
    const Weight<A>* data() const {
        return static_cast<const Weight<A>*>(panels.get());
    }

 private:
    template <typename A, typename B>
    void fill(const Tensor& values_OI) {
        const auto values = values_OI.packed<const B>("values_OI", {ANY, ANY});
        out_size = values.shape[0], in_size = values.shape[1];
        check_value(parts > 0 && out_size % parts == 0, "values_OI must have parts of one size");
        const int64_t size = out_size / parts;
        const auto to = weights<B>(parts * round_up(size, PANEL) * padded<A>(in_size));
        launch_uncaptured("packing a weight", [&] {
            for (int64_t part = 0; part < parts; ++part)
                pack<A>(values.row(part * size), size, in_size, to.get(), part, parts);
        });
        panels = to;
        if constexpr (std::is_same_v<A, uint8_t>)
            totals = make_whole_panels<int32_t>(out_size, parts, [&](int64_t row) {
                return std::accumulate(values.row(row), values.row(row) + in_size, 0);
            });
    }
};

}  // namespace native
