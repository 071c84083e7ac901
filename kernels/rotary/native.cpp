// rotary. Contract: kernels/rotary/__init__.py.
#include "../native/binding.h"
#include "../native/pool.h"
#include "rotary.h"

namespace {

using namespace native;

// Heads of rows of x to those of y, by their strides; cos and sin: [num_rows, dim], laid out as the contract says.
template <typename T>
void rotary(const T* x, int64_t x_row, int64_t x_head, const float* cos, const float* sin, T* y, int64_t y_row,
            int64_t y_head, int64_t num_rows, int64_t num_heads, int64_t dim) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t head = 0; head < num_heads; ++head)
                rotate(x + row * x_row + head * x_head, cos + row * dim, sin + row * dim,
                       y + row * y_row + head * y_head, dim);
    });
}

}  // namespace

void native::bind_rotary(nb::module_& m) {
    m.def(
        "rotary",
        [](Tensor x_TND, Tensor cos_TD, Tensor sin_TD, Tensor y_TND) {
            with_dtype(x_TND, "x_TND", [&](auto number) {
                using T = decltype(number);
                const auto x = x_TND.view<const T>("x_TND", {ANY, ANY, ANY});
                const auto cos = cos_TD.packed<const float>("cos_TD", {x.shape[0], x.shape[2]});
                const auto sin = sin_TD.packed<const float>("sin_TD", cos.shape);
                const auto y = y_TND.view<T>("y_TND", x.shape);
                check_value(x.shape[2] % 2 == 0, "the head dimension must be even");
                launch(x.shape[0], [=](int64_t rows) {
                    rotary(x.data, x.stride[0], x.stride[1], cos.data, sin.data, y.data, y.stride[0], y.stride[1], rows,
                           x.shape[1], x.shape[2]);
                });
            });
        },
        "x_TND"_a, "cos_TD"_a, "sin_TD"_a, "y_TND"_a);
}
