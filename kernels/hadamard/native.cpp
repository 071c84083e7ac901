// rotate. Contract: kernels/hadamard/__init__.py.
#include "../native/binding.h"
#include "../native/hadamard.h"
#include "../native/pool.h"

using namespace native;

void native::bind_hadamard(nb::module_& m) {
    m.def(
        "rotate",
        [](Tensor x_NI, int64_t block) {
            return with_dtype(x_NI, "x_NI", [&](auto number) {
                using T = decltype(number);
                const auto x = x_NI.packed<const T>("x_NI", {ANY, ANY});
                check_value(can_rotate(x.shape[1], block),
                            "block must be a power of two from 16 to 512 that divides the row");
                const auto y = x_NI.make<float>({x.shape[0], x.shape[1]});
                launch(x.shape[0], [=, y = y.view](int64_t rows) {
                    parallel_rows(rows, 4, [&](int64_t row) { rotate_row(x.row(row), x.shape[1], block, y.row(row)); });
                });
                return y.tensor;
            });
        },
        "x_NI"_a, "block"_a);
}
