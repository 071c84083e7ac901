// A linear layer with a weight in floats or int8. Contracts: kernels/linear/__init__.py,
// kernels/linear_int8/__init__.py.
#include "../native/packed.h"
#include "../native/panel_pairs.h"

namespace {

using namespace native;

struct Linear {
    PackedWeight weight;
    std::shared_ptr<float> bias;  // with memory for whole panels, or null
    Element out;

    Linear(const PackedWeight& packed, std::optional<Tensor> bias_O, DType out_dtype)
        : weight(packed), out(out_dtype.element()) {
        if (bias_O) bias = whole_panels(bias_O->packed<const float>("bias_O", {weight.out_size}));
    }
};

inline v16 bias_at(const float* bias, int64_t column) { return bias ? load(bias + column) : v16{}; }

template <typename X, typename Y>
void multiply_uint8(const Linear& layer, const View<const X, 2>& x, int64_t num_rows, Y* y) {
    const PackedWeight& weight = layer.weight;
    const int64_t K = padded<uint8_t>(weight.in_size);
    static thread_local Scratch<uint8_t> memory;
    static thread_local Scratch<Grid> grid_memory;
    uint8_t* const rows = memory.room(round_up(num_rows, ROWS) * K);
    Grid* const grids = grid_memory.room(num_rows);
    parallel_rows(num_rows, 2, [&](int64_t row) {
        grids[row] = quantize_row(x.row(row), weight.in_size, K, rows + row * K, weight.grid);
    });
    const Scaling scaling{weight.scales.get(), weight.totals.get(), grids};
    const auto scaled = [scaling, bias = layer.bias.get()](const int32_t* sums, int64_t row, int64_t column) {
        const v16 own_bias = bias_at(bias, column);
        return scaling(sums, row, column) + own_bias;
    };
    multiply_weight<uint8_t>({rows, K}, num_rows, weight.data<uint8_t>(), weight.in_size, weight.out_size, y, scaled);
}

// Rows as A by a weight in B: the same, or int8 that stands for floats.
template <typename A, typename B, typename X, typename Y>
void multiply_floats(const Linear& layer, const View<const X, 2>& x, int64_t num_rows, Y* y) {
    const PackedWeight& weight = layer.weight;
    const auto finish = [scales = weight.scales.get(), bias = layer.bias.get()](const float* sums, int64_t,
                                                                                int64_t column) {
        if constexpr (std::is_same_v<B, int8_t>)
            return load(sums) * load(scales + column) + bias_at(bias, column);
        else
            return load(sums) + bias_at(bias, column);
    };
    multiply_weight<A>(whole_rows<A>(x.data, x.stride[0], num_rows, weight.in_size), num_rows,
                       static_cast<const B*>(weight.panels.get()), weight.in_size, weight.out_size, y, finish);
}

template <typename X, typename Y>
Tensor forward(const std::shared_ptr<Linear>& layer, const Tensor& x_TI) {
    const auto x = x_TI.view<const X>("x_TI", {ANY, layer->weight.in_size});
    const auto y = x_TI.make<Y>({x.shape[0], layer->weight.out_size});
    launch(x.shape[0], [=, y = y.view.data](int64_t rows) {
        if (layer->weight.operand == Element::UINT8)
            multiply_uint8(*layer, x, rows, y);
        else if (layer->weight.scales)
            multiply_floats<X, int8_t>(*layer, x, rows, y);
        else if (layer->weight.operand == element_of<X>())
            multiply_floats<X, X>(*layer, x, rows, y);
        else
            multiply_floats<float, float>(*layer, x, rows, y);
    });
    return y.tensor;
}

}  // namespace

void native::bind_linear(nb::module_& m) {
    nb::class_<PackedWeight>(m, "PackedWeight")
        .def(nb::init<Tensor, std::optional<Tensor>, DType, float, int32_t, int64_t, int64_t>(), "values_OI"_a,
             "scale_O"_a.none(), "operand"_a, "scale"_a, "zero_point"_a, "rotation"_a, "parts"_a);
    nb::class_<Linear>(m, "Linear")
        .def(nb::init<const PackedWeight&, std::optional<Tensor>, DType>(), "weight"_a, "bias_O"_a.none(),
             "out_dtype"_a)
        .def(
            "forward",
            [](std::shared_ptr<Linear> self, Tensor x_TI) {
                return with_dtype(x_TI, "x_TI", [&](auto number) {
                    using X = decltype(number);
                    const PackedWeight& weight = self->weight;
                    const bool any =
                        weight.operand == Element::UINT8 || (weight.operand == Element::FLOAT32 && !weight.scales);
                    if (self->out == Element::FLOAT32 && (any || weight.operand == element_of<X>()))
                        return forward<X, float>(self, x_TI);
                    if constexpr (std::is_same_v<X, bf16>)
                        if (weight.operand != Element::FLOAT32) return forward<bf16, bf16>(self, x_TI);
                    throw nb::type_error("x_TI must be of the dtype that the layer is packed for");
                });
            },
            "x_TI"_a);
}
