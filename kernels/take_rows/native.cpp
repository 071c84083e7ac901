// take_rows on a CPU. Contract: kernels/take_rows/__init__.py.
#include "../native/binding.h"

#include <cstring>

void native::bind_take_rows(nb::module_& m) {
    m.def(
        "take_rows",
        [](Tensor x_NX, Tensor rows_R) {
            return with_dtype(x_NX, "x_NX", [&](auto number) {
                using T = decltype(number);
                const auto x = x_NX.view<const T>("x_NX", {ANY, ANY});
                const auto rows = rows_R.packed<const int64_t>("rows_R", {ANY});
                const auto y = x_NX.make<T>({rows.shape[0], x.shape[1]});
                if (Graph* graph = Graph::capturing) graph->switch_rows();
                launch(rows.shape[0], [=, y = y.view](int64_t count) {
                    check_indices(rows.data, count, x.shape[0], "rows_R");
                    for (int64_t i = 0; i < count; ++i)
                        std::memcpy(y.row(i), x.row(rows.data[i]), y.shape[1] * sizeof(T));
                });
                return y.tensor;
            });
        },
        "x_NX"_a, "rows_R"_a);
}
