// gelu. Contract: kernels/gelu/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

namespace {

using namespace native;

// erfc by Abramowitz and Stegun 7.1.26, whose error is 1.5e-7. On the negative side it is what x is multiplied with, so
// that nothing cancels there.
inline v16 gelu(v16 x) {
    const v16 z = (x < 0.0f ? -x : x) * 0.70710678f;
    const v16 t = 1.0f / (1.0f + z * 0.3275911f);
    v16 p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const v16 erfc = p * t * exp(-z * z);
    return x * 0.5f * (x < 0.0f ? erfc : 2.0f - erfc);
}

}  // namespace

void native::bind_gelu(nb::module_& m) {
    m.def(
        "gelu",
        [](Tensor x_TF) {
            return with_dtype(x_TF, "x_TF", [&](auto number) {
                using T = decltype(number);
                const auto x = x_TF.view<const T>("x_TF", {ANY, ANY});
                const auto y = x_TF.make<T>({x.shape[0], x.shape[1]});
                launch(x.shape[0], [=, y = y.view](int64_t rows) {
                    parallel_rows(rows, 4, [&](int64_t row) {
                        for (int64_t i = 0; i < x.shape[1]; i += LANES)
                            store_to(y.row(row), i, x.shape[1], gelu(load_from(x.row(row), i, x.shape[1])));
                    });
                });
                return y.tensor;
            });
        },
        "x_TF"_a);
}
