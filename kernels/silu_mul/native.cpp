// silu_mul. Contract: kernels/silu_mul/__init__.py.
#include "../native/binding.h"
#include "../native/pool.h"
#include "silu.h"

#include <cmath>

namespace {

using namespace native;

template <typename T>
void silu_mul(const T* gate, const T* up, T* y, int64_t size) {
    const int64_t whole = size / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) store(y + i, silu(load(gate + i)) * load(up + i));
    for (int64_t i = whole; i < size; ++i) {
        const float g = load1(gate + i);
        store1(y + i, g / (1.0f + std::exp(-g)) * load1(up + i));
    }
}

}  // namespace

void native::bind_silu_mul(nb::module_& m) {
    m.def(
        "silu_mul",
        [](Tensor gate_up_TF2) {
            return with_dtype(gate_up_TF2, "gate_up_TF2", [&](auto number) {
                using T = decltype(number);
                const auto gate_up = gate_up_TF2.packed<const T>("gate_up_TF2", {ANY, ANY});
                const int64_t size = gate_up.shape[1] / 2;
                check_value(gate_up.shape[1] == 2 * size, "gate_up_TF2 must have an even number of columns");
                const auto y = gate_up_TF2.make<T>({gate_up.shape[0], size});
                launch(gate_up.shape[0], [=, y = y.view](int64_t rows) {
                    parallel_rows(rows, 4, [&](int64_t row) {
                        silu_mul(gate_up.row(row), gate_up.row(row) + size, y.row(row), size);
                    });
                });
                return y.tensor;
            });
        },
        "gate_up_TF2"_a);
}
