// A linear layer in bf16 or fp32. Contract: kernels/linear/__init__.py.
//
// Each task computes all rows for its share of the weight's panels, so that the weight is read once (with up to 32
// rows) and stays in cache beyond.
#include "../native/binding.h"
#include "../native/gemm.h"
#include "../native/packed.h"

#include <algorithm>

namespace {

using namespace native;

template <typename Y>
void finish(const float* sums, const float* bias, int64_t M, int64_t count, Y* y, int64_t stride) {
    const v16 added = bias ? load(bias) : v16{};
    for (int64_t m = 0; m < M; ++m) {
        const v16 value = load(sums + m * BLOCK) + added;
        if (count >= PANEL)
            store(y + m * stride, value);
        else
            for (int64_t n = 0; n < count; ++n) store1(y + m * stride + n, value[n]);
    }
}

template <typename A, typename X, typename Y>
void linear(const X* x, int64_t stride, int64_t num_rows, const A* weight, const float* bias, int64_t in_size,
            int64_t out_size, Y* y) {
    const int64_t K = padded<A>(in_size), panel = K * PANEL, num_panels = (out_size + PANEL - 1) / PANEL;
    const Whole<A> a = whole_rows<X, A>(x, stride, num_rows, in_size);
    parallel_pairs((num_panels + 1) / 2, [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) float sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const A* left = weight + 2 * pair * panel;
            const A* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const A* next =
                weight +
                std::min(2 * (pair + 1 < end ? pair + 1 : next_pair), std::max<int64_t>(num_panels - 2, 0)) * panel;
            const int64_t first = pair * BLOCK, count = out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(a.rows + row * a.stride, a.stride, M, left, right, K, sums, row ? nullptr : next);
                Y* out = y + row * out_size + first;
                finish(sums, bias ? bias + first : nullptr, M, count, out, out_size);
                if (count > PANEL)
                    finish(sums + PANEL, bias ? bias + first + PANEL : nullptr, M, count - PANEL, out + PANEL,
                           out_size);
            }
        }
    });
}

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
        linear<A>(x.data, x.stride[0], rows, static_cast<const A*>(layer->weight.get()), layer->bias.get(),
                  layer->in_size, layer->out_size, y.data);
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
