// rotary. Contract: kernels/rotary/__init__.py.
#include "../native/binding.h"
#include "../native/pool.h"
#include "rotary.h"

void native::bind_rotary(nb::module_& m) {
    m.def(
        "rotary",
        [](Tensor x_TND, Tensor cos_TD, Tensor sin_TD, std::optional<Tensor> y_TND) {
            return with_dtype(x_TND, "x_TND", [&](auto number) {
                using T = decltype(number);
                const auto x = x_TND.view<const T>("x_TND", {ANY, ANY, ANY});
                const auto cos = cos_TD.packed<const float>("cos_TD", {x.shape[0], x.shape[2]});
                const auto sin = sin_TD.packed<const float>("sin_TD", cos.shape);
                const auto y = y_TND ? Made<T, 3>{*y_TND, y_TND->view<T>("y_TND", x.shape)} : x_TND.make<T>(x.shape);
                check_value(x.shape[2] % 2 == 0, "the head dimension must be even");
                launch(x.shape[0], [=, y = y.view](int64_t rows) {
                    parallel_rows(rows, 8, [&](int64_t row) {
                        for (int64_t head = 0; head < x.shape[1]; ++head)
                            rotate(x.row(row, head), cos.row(row), sin.row(row), y.row(row, head), x.shape[2]);
                    });
                });
                return y.tensor;
            });
        },
        "x_TND"_a, "cos_TD"_a, "sin_TD"_a, "y_TND"_a = nb::none());
}
