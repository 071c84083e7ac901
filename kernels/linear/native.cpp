// A linear layer in bf16 or fp32. Contract: kernels/linear/__init__.py.
#include "../native/binding.h"
#include "../native/packed.h"
#include "../native/panel_pairs.h"

namespace {

using namespace native;

// A layer's packed weight, in the dtype that it computes in.
struct Linear {
    Element dtype;
    std::shared_ptr<void> weight;
    std::shared_ptr<float> bias;  // with memory for whole panels, or null
    int64_t in_size, out_size;

    Linear(Tensor weight_OI, std::optional<Tensor> bias_O) : dtype(weight_OI.element("weight_OI")) {
        with_element(dtype, "weight_OI", [&](auto number) {
            using A = decltype(number);
            const auto from = weight_OI.packed<const A>("weight_OI", {ANY, ANY});
            out_size = from.shape[0], in_size = from.shape[1];
            if (bias_O) bias = whole_panels(bias_O->packed<const float>("bias_O", {out_size}));
            const auto to = weights<A>(round_up(out_size, PANEL) * padded<A>(in_size));
            launch_uncaptured("packing a weight", [&] { pack<A>(from.data, out_size, in_size, to.get(), 0, 1); });
            weight = to;
        });
    }
};

template <typename A, typename X, typename Y>
void forward(const std::shared_ptr<Linear>& layer, const Tensor& x_TI, const Tensor& y_TO) {
    const auto x = x_TI.view<const X>("x_TI", {ANY, layer->in_size});
    const auto y = y_TO.packed<Y>("y_TO", {x.shape[0], layer->out_size});
    launch(x.shape[0], [=](int64_t rows) {
        const auto plus_bias = [bias = layer->bias.get()](const float* sums, int64_t, int64_t column) {
            return load(sums) + (bias ? load(bias + column) : v16{});
        };
        multiply_weight<A>(whole_rows<A>(x.data, x.stride[0], rows, layer->in_size), rows,
                           static_cast<const A*>(layer->weight.get()), layer->in_size, layer->out_size, y.data,
                           plus_bias);
    });
}

}  // namespace

void native::bind_linear(nb::module_& m) {
    nb::class_<Linear>(m, "Linear")
        .def(nb::init<Tensor, std::optional<Tensor>>(), "weight_OI"_a, "bias_O"_a.none())
        .def(
            "forward",
            [](std::shared_ptr<Linear> self, Tensor x_TI, Tensor y_TO) {
                if (self->dtype == Element::BFLOAT16)
                    with_dtype(y_TO, "y_TO", [&](auto y) { forward<bf16, bf16, decltype(y)>(self, x_TI, y_TO); });
                else
                    with_dtype(x_TI, "x_TI", [&](auto x) { forward<float, decltype(x), float>(self, x_TI, y_TO); });
            },
            "x_TI"_a, "y_TO"_a);
}
