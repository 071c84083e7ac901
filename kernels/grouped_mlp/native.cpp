// The sum over a token's experts. Contract: kernels/grouped_mlp/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

namespace {

using namespace native;

// y[t] = sum over k of weights[t, k] * rows[where[t, k]], in fp32.
template <typename T>
void combine(const T* rows, const int64_t* where, const float* weights, T* y, int64_t num_tokens, int64_t top_k,
             int64_t size) {
    parallel_spans(num_tokens, 8, [&](int64_t first, int64_t last) {
        for (int64_t token = first; token < last; ++token) {
            const int64_t* from = where + token * top_k;
            const float* weight = weights + token * top_k;
            const int64_t whole = size / LANES * LANES;
            for (int64_t i = 0; i < whole; i += LANES) {
                v16 sum{};
                for (int64_t k = 0; k < top_k; ++k) sum += load(rows + from[k] * size + i) * weight[k];
                store(y + token * size + i, sum);
            }
            for (int64_t i = whole; i < size; ++i) {
                float sum = 0;
                for (int64_t k = 0; k < top_k; ++k) sum += load1(rows + from[k] * size + i) * weight[k];
                store1(y + token * size + i, sum);
            }
        }
    });
}

}  // namespace

void native::bind_combine(nb::module_& m) {
    m.def(
        "combine",
        [](Tensor y_PH, Tensor where_TK, Tensor weights_TK, Tensor out_TH) {
            with_dtype(y_PH, "y_PH", [&](auto number) {
                using T = decltype(number);
                const auto where = where_TK.packed<const int64_t>("where_TK", {ANY, ANY});
                const auto weights = weights_TK.packed<const float>("weights_TK", where.shape);
                const auto y = y_PH.packed<const T>("y_PH", {where.shape[0] * where.shape[1], ANY});
                const auto out = out_TH.packed<T>("out_TH", {where.shape[0], y.shape[1]});
                launch(where.shape[0], [=](int64_t rows) {
                    check_indices(where.data, rows * where.shape[1], y.shape[0], "where_TK");
                    combine(y.data, where.data, weights.data, out.data, rows, where.shape[1], y.shape[1]);
                });
            });
        },
        "y_PH"_a, "where_TK"_a, "weights_TK"_a, "out_TH"_a);
}
