// The sum over a token's experts. Contract: kernels/grouped_mlp/__init__.py.
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

extern "C" {
void combine_bf16(const native::bf16* rows, const int64_t* where, const float* weights, native::bf16* y,
                  int64_t num_tokens, int64_t top_k, int64_t size) {
    combine(rows, where, weights, y, num_tokens, top_k, size);
}
void combine_f32(const float* rows, const int64_t* where, const float* weights, float* y, int64_t num_tokens,
                 int64_t top_k, int64_t size) {
    combine(rows, where, weights, y, num_tokens, top_k, size);
}
}
