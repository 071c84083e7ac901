// An int8 linear layer, its input uint8 or floats. Contract: kernels/linear_int8/__init__.py.
#include "../native/binding.h"
#include "../native/packed.h"
#include "../native/panel_pairs.h"
#include "../native/quantize.h"

namespace {

using namespace native;

// A layer's packed weight, and what belongs to its columns, with memory for whole panels.
struct Int8Linear {
    Element operand;  // what x is multiplied as: uint8 on a grid, or a number
    std::shared_ptr<int8_t> weight;
    std::shared_ptr<float> scales, bias;  // no bias: null
    std::shared_ptr<int32_t> totals;      // the sum of each row of the weight
    int64_t in_size, out_size;
    Grid grid;  // scale 0: each row its own

    Int8Linear(Tensor values_OI, Tensor scale_O, std::optional<Tensor> bias_O, DType dtype, float scale,
               int32_t zero_point)
        : operand(dtype.element()), grid{scale, zero_point} {
        const auto values = values_OI.packed<const int8_t>("values_OI", {ANY, ANY});
        out_size = values.shape[0], in_size = values.shape[1];
        scales = whole_panels(scale_O.packed<const float>("scale_O", {out_size}));
        if (bias_O) bias = whole_panels(bias_O->packed<const float>("bias_O", {out_size}));
        const auto make = [&](auto zero) {
            using A = decltype(zero);
            weight = weights<int8_t>(round_up(out_size, PANEL) * padded<A>(in_size));
            launch_uncaptured("packing a weight", [&] { pack<A>(values.data, out_size, in_size, weight.get()); });
        };
        if (operand == Element::UINT8) {
            totals = row_totals(values);
            make(uint8_t{});
        } else {
            with_element(operand, "operand", make);
        }
    }

    v16 bias_at(int64_t column) const { return bias ? load(bias.get() + column) : v16{}; }
};

template <typename X, typename Y>
void multiply_uint8(const Int8Linear& layer, const View<const X, 2>& x, int64_t num_rows, Y* y) {
    const int64_t K = padded<uint8_t>(layer.in_size);
    static thread_local Scratch<uint8_t> memory;
    static thread_local Scratch<Grid> grid_memory;
    uint8_t* const rows = memory.room(round_up(num_rows, ROWS) * K);
    Grid* const grids = grid_memory.room(num_rows);
    parallel_rows(num_rows, 2, [&](int64_t row) {
        grids[row] = quantize_row(x.row(row), layer.in_size, K, rows + row * K, layer.grid);
    });
    const Scaling scaling{layer.scales.get(), layer.totals.get(), grids};
    const auto scaled = [&](const int32_t* sums, int64_t row, int64_t column) {
        const v16 bias = layer.bias_at(column);
        return scaling(sums, row, column) + bias;
    };
    multiply_weight<uint8_t>({rows, K}, num_rows, layer.weight.get(), layer.in_size, layer.out_size, y, scaled);
}

// Weights alone are int8.
template <typename X, typename Y>
void multiply_floats(const Int8Linear& layer, const View<const X, 2>& x, int64_t num_rows, Y* y) {
    const auto scaled = [&](const float* sums, int64_t, int64_t column) {
        return load(sums) * load(layer.scales.get() + column) + layer.bias_at(column);
    };
    multiply_weight<X>(whole_rows<X>(x.data, x.stride[0], num_rows, layer.in_size), num_rows, layer.weight.get(),
                       layer.in_size, layer.out_size, y, scaled);
}

template <typename X, typename Y>
void forward(const std::shared_ptr<Int8Linear>& layer, const Tensor& x_TI, const Tensor& y_TO) {
    const auto x = x_TI.view<const X>("x_TI", {ANY, layer->in_size});
    const auto y = y_TO.packed<Y>("y_TO", {x.shape[0], layer->out_size});
    launch(x.shape[0], [=](int64_t rows) {
        if (layer->operand == Element::UINT8)
            multiply_uint8(*layer, x, rows, y.data);
        else
            multiply_floats(*layer, x, rows, y.data);
    });
}

}  // namespace

void native::bind_linear_int8(nb::module_& m) {
    nb::class_<Int8Linear>(m, "Int8Linear")
        .def(nb::init<Tensor, Tensor, std::optional<Tensor>, DType, float, int32_t>(), "values_OI"_a, "scale_O"_a,
             "bias_O"_a.none(), "operand"_a, "scale"_a, "zero_point"_a)
        .def(
            "forward",
            [](std::shared_ptr<Int8Linear> self, Tensor x_TI, Tensor y_TO) {
                const Element dtype = x_TI.element("x_TI");
                if (self->operand != Element::UINT8 && self->operand != dtype)
                    throw nb::type_error("x_TI must be of the dtype that the weight is packed for");
                if (dtype == Element::FLOAT32)
                    forward<float, float>(self, x_TI, y_TO);
                else
                    with_dtype(y_TO, "y_TO", [&](auto y) { forward<bf16, decltype(y)>(self, x_TI, y_TO); });
            },
            "x_TI"_a, "y_TO"_a);
}
