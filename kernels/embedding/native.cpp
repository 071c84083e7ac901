// embedding on a CPU. Contract: kernels/embedding/__init__.py.
#include "../native/binding.h"
#include "../native/pool.h"

void native::bind_embedding(nb::module_& m) {
    m.def(
        "embedding",
        [](Tensor weight_VH, Tensor token_ids_T) {
            return with_dtype(weight_VH, "weight_VH", [&](auto number) {
                using T = decltype(number);
                const auto weight = weight_VH.packed<const T>("weight_VH", {ANY, ANY});
                const auto token_ids = token_ids_T.packed<const int64_t>("token_ids_T", {ANY});
                const auto x = weight_VH.make<float>({token_ids.shape[0], weight.shape[1]});
                launch(token_ids.shape[0], [=, x = x.view](int64_t rows) {
                    check_indices(token_ids.data, rows, weight.shape[0], "token_ids_T");
                    const int64_t size = weight.shape[1];
                    parallel_rows(rows, 8, [&](int64_t row) {
                        for (int64_t i = 0; i < size; i += LANES)
                            store_to(x.row(row), i, size, load_from(weight.row(token_ids.data[row]), i, size));
                    });
                });
                return x.tensor;
            });
        },
        "weight_VH"_a, "token_ids_T"_a);
}
