// An int8 linear layer, its input uint8 or numbers. Contract: kernels/linear_int8/__init__.py.
//
// The rows are made uint8 first; then each task computes all rows for its share of the weight's panels, so that the
// weight is read once (with up to 32 rows) and stays in cache beyond.
#include "../native/binding.h"
#include "../native/gemm.h"
#include "../native/packed.h"

#include <algorithm>

namespace {

using namespace native;

struct Layer {
    const int8_t* weight;   // packed [N, K]
    const float* scales;    // [N], with memory for whole panels, as the next two
    const int32_t* totals;  // [N]: the sum of each row of the weight
    const float* bias;      // [N] or null
    int64_t in_size, out_size;
    Grid grid;  // scale 0: each row its own
};

// The sums of M rows and one panel to numbers, `count` of its columns.
template <typename Y>
void finish(const Layer& layer, const int32_t* sums, const Grid* grids, int64_t M, int64_t first, int64_t count, Y* y) {
    const Scaling<uint8_t> scaling(layer.scales, layer.totals, first);
    const v16 bias = layer.bias ? load(layer.bias + first) : v16{};
    const int64_t stride = layer.out_size;
    for (int64_t m = 0; m < M; ++m) {
        const v16 value = scaling(sums + m * BLOCK, grids + m) + bias;
        Y* to = y + m * stride + first;
        if (count == PANEL) {
            store(to, value);
        } else {
            for (int64_t n = 0; n < count; ++n) store1(to + n, value[n]);
        }
    }
}

template <typename T, typename Y>
void linear_int8(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<uint8_t>(layer.in_size), panel = K * PANEL;
    const int64_t num_panels = (layer.out_size + PANEL - 1) / PANEL;
    static thread_local Scratch<uint8_t> rows;
    static thread_local Scratch<Grid> grids;
    uint8_t* const quantized = rows.room(round_up(num_rows, 16) * K);
    Grid* const used = grids.room(num_rows);
    parallel_spans(num_rows, 2, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            used[row] = quantize_row(x + row * stride, layer.in_size, K, quantized + row * K, layer.grid);
    });
    parallel_pairs((num_panels + 1) / 2, [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) int32_t sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const int8_t* left = layer.weight + 2 * pair * panel;
            const int8_t* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const int8_t* next =
                layer.weight +
                std::min(2 * (pair + 1 < end ? pair + 1 : next_pair), std::max<int64_t>(num_panels - 2, 0)) * panel;
            const int64_t first = pair * BLOCK, count = layer.out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(quantized + row * K, K, M, left, right, K, sums, row ? nullptr : next);
                Y* out = y + row * layer.out_size;
                finish(layer, sums, used + row, M, first, std::min(PANEL, count), out);
                if (count > PANEL)
                    finish(layer, sums + PANEL, used + row, M, first + PANEL, std::min(PANEL, count - PANEL), out);
            }
        }
    });
}

// Weights alone are int8: a panel at a time becomes numbers, in the caches, and is multiplied as such.
template <typename A, typename T, typename Y>
void weight_only(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<A>(layer.in_size), panel = K * PANEL, num_panels = (layer.out_size + PANEL - 1) / PANEL;
    const Whole<A> a = whole_rows<T, A>(x, stride, num_rows, layer.in_size);
    parallel_spans((num_panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        A* const numbers = reinterpret_cast<A*>(scratch(2 * panel * sizeof(A)));
        alignas(64) float sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const int64_t first = pair * BLOCK, count = layer.out_size - first, panels = count > PANEL ? 2 : 1;
            const int8_t* from = layer.weight + 2 * pair * panel;
            for (int64_t i = 0; i < panels * panel; i += LANES) {
                typedef int8_t b16 __attribute__((vector_size(16)));
                b16 bytes;
                std::memcpy(&bytes, from + i, sizeof bytes);
                store(numbers + i, __builtin_convertvector(bytes, v16));
            }
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(a.rows + row * a.stride, a.stride, M, numbers, panels > 1 ? numbers + panel : numbers, K, sums,
                         nullptr);
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t p = 0; p < panels; ++p) {
                        const int64_t at = first + p * PANEL;
                        const v16 value = load(sums + m * BLOCK + p * PANEL) * load(layer.scales + at) +
                                          (layer.bias ? load(layer.bias + at) : v16{});
                        store_to(y + (row + m) * layer.out_size, at, layer.out_size, value);
                    }
            }
        }
    });
}

// weight [N, K] in panels as for numbers of type A.
template <typename A>
void pack_weight_only(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    const int64_t size = padded<A>(K) * PANEL;
    parallel_spans((N + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin * PANEL; row < std::min(end * PANEL, N); ++row)
            for (int64_t k = 0; k < K; ++k)
                out[row / PANEL * size + (k / GROUP<A> * PANEL + row % PANEL) * GROUP<A> + k % GROUP<A>] =
                    weight[row * K + k];
    });
}

// A layer's packed weight, and what belongs to it.
struct Int8Linear {
    Element operand;  // what x is multiplied as: uint8 on a grid, or a number
    std::shared_ptr<int8_t> weight;
    std::shared_ptr<float> scales, bias;
    std::shared_ptr<int32_t> totals;
    Layer layer;

    Int8Linear(Tensor values_OI, Tensor scale_O, std::optional<Tensor> bias_O, DType operand, float scale,
               int32_t zero_point)
        : operand(operand.element()) {
        const auto values = values_OI.packed<const int8_t>("values_OI", {ANY, ANY});
        const int64_t out_size = values.shape[0], in_size = values.shape[1];
        scales = whole_panels(scale_O.packed<const float>("scale_O", {out_size}));
        if (bias_O) bias = whole_panels(bias_O->packed<const float>("bias_O", {out_size}));
        const auto make = [&](auto number, const auto& pack) {
            weight = weights<int8_t>(round_up(out_size, PANEL) * padded<decltype(number)>(in_size));
            launch_uncaptured("packing a weight", [&] { pack(values.data, out_size, in_size, weight.get()); });
        };
        if (this->operand == Element::UINT8) {
            totals = row_totals(values);
            make(uint8_t{}, [](auto... sizes) { pack<uint8_t>(sizes..., 0, 1); });
        } else {
            with_element(this->operand, "operand", [&](auto number) {
                make(number, [](auto... sizes) { pack_weight_only<decltype(number)>(sizes...); });
            });
        }
        layer = {weight.get(), scales.get(), totals.get(), bias.get(), in_size, out_size, {scale, zero_point}};
    }
};

template <typename X, typename Y>
void forward(const std::shared_ptr<Int8Linear>& self, const Tensor& x_TI, const Tensor& y_TO) {
    const auto x = x_TI.view<const X>("x_TI", {ANY, self->layer.in_size});
    const auto y = y_TO.packed<Y>("y_TO", {x.shape[0], self->layer.out_size});
    launch(x.shape[0], [=](int64_t rows) {
        if (self->operand == Element::UINT8)
            linear_int8(x.data, x.stride[0], rows, self->layer, y.data);
        else
            weight_only<X>(x.data, x.stride[0], rows, self->layer, y.data);
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
