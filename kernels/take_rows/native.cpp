// take_rows on a CPU. Contract: kernels/take_rows/__init__.py.
#include "../native/binding.h"

#include <cstring>

void native::bind_take_rows(nb::module_& m) {
    m.def(
        "take_rows",
        [](Tensor x_TX, Tensor rows_R, Tensor out_RX) {
            with_dtype(x_TX, "x_TX", [&](auto number) {
                using T = decltype(number);
                const auto x = x_TX.view<const T>("x_TX", {ANY, ANY});
                const auto rows = rows_R.packed<const int64_t>("rows_R", {ANY});
                const auto out = out_RX.packed<T>("out_RX", {rows.shape[0], x.shape[1]});
                if (Graph* graph = Graph::capturing) graph->switch_rows();
                launch(rows.shape[0], [=](int64_t count) {
                    check_indices(rows.data, count, x.shape[0], "rows_R");
                    for (int64_t i = 0; i < count; ++i)
                        std::memcpy(out.data + i * out.shape[1], x.data + rows.data[i] * x.stride[0],
                                    out.shape[1] * sizeof(T));
                });
            });
        },
        "x_TX"_a, "rows_R"_a, "out_RX"_a);
}
