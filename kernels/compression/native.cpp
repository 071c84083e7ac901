// What stands around the products of a compression block. Contract: kernels/compression/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

#include <cmath>

namespace {

using namespace native;

// residual += x, which is also returned in x's dtype.
template <typename T>
void add(const T* x, float* residual, T* y, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        const v16 sum = load_from(residual, i, size) + load_from(x, i, size);
        store_to(residual, i, size, sum);
        store_to(y, i, size, sum);
    }
}

// residual = layer norm of residual + x. What lies behind a row's end counts as 0, in both sums.
void add_layer_norm(const float* x, const float* weight, const float* bias, float eps, float* residual, int64_t size) {
    v16 total{};
    for (int64_t i = 0; i < size; i += LANES) {
        const v16 value = load_from(residual, i, size) + load_from(x, i, size);
        store_to(residual, i, size, value);
        total += value;
    }
    const float mean = sum(total) / float(size);
    const int64_t whole = size / LANES * LANES;
    v16 squares{};
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 value = load(residual + i) - mean;
        squares += value * value;
    }
    float square = sum(squares);
    for (int64_t i = whole; i < size; ++i) square += (residual[i] - mean) * (residual[i] - mean);
    const float scale = 1.0f / std::sqrt(square / float(size) + eps);
    for (int64_t i = 0; i < size; i += LANES)
        store_to(residual, i, size,
                 (load_from(residual, i, size) - mean) * scale * load_from(weight, i, size) + load_from(bias, i, size));
}

}  // namespace

void native::bind_compression(nb::module_& m) {
    m.def(
        "add_residual",
        [](Tensor x_TH, Tensor residual_TH) {
            return with_dtype(x_TH, "x_TH", [&](auto number) {
                using T = decltype(number);
                const auto x = x_TH.view<const T>("x_TH", {ANY, ANY});
                const auto residual = residual_TH.packed<float>("residual_TH", x.shape);
                const auto y = x_TH.make<T>(x.shape);
                launch(x.shape[0], [=, y = y.view](int64_t rows) {
                    parallel_rows(rows, 8,
                                  [&](int64_t row) { add(x.row(row), residual.row(row), y.row(row), x.shape[1]); });
                });
                return y.tensor;
            });
        },
        "x_TH"_a, "residual_TH"_a);
    m.def(
        "add_layer_norm",
        [](Tensor x_TH, Tensor weight_H, Tensor bias_H, float eps, Tensor residual_TH) {
            const auto x = x_TH.view<const float>("x_TH", {ANY, ANY});
            const auto weight = weight_H.packed<const float>("weight_H", {x.shape[1]});
            const auto bias = bias_H.packed<const float>("bias_H", {x.shape[1]});
            const auto residual = residual_TH.packed<float>("residual_TH", x.shape);
            launch(x.shape[0], [=](int64_t rows) {
                parallel_rows(rows, 8, [&](int64_t row) {
                    add_layer_norm(x.row(row), weight.data, bias.data, eps, residual.row(row), x.shape[1]);
                });
            });
        },
        "x_TH"_a, "weight_H"_a, "bias_H"_a, "eps"_a, "residual_TH"_a);
}
