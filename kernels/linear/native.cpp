// A linear layer in bf16 or fp32. Contract: kernels/linear/__init__.py.
#include "../native/panel_pairs.h"

namespace {

using namespace native;

template <typename A, typename X, typename Y>
int linear(const X* x, int64_t stride, int64_t num_rows, const A* weight, const float* bias, int64_t in_size,
           int64_t out_size, Y* y) {
    const Matrix<const A> rows = whole_rows<A>(x, stride, num_rows, in_size);
    const auto plus_bias = [=](const float* sums, int64_t, int64_t column) {
        return load(sums) + (bias ? load(bias + column) : v16{});
    };
    multiply_weight<A>(rows, num_rows, weight, padded<A>(in_size), out_size, y, plus_bias);
    return 0;
}

}  // namespace

// bias: null, or fp32 with memory for whole panels.
#define DEFINE(NAME, X, A, Y)                                                                             \
    extern "C" int NAME(const X* x, int64_t stride, int64_t num_rows, const A* weight, const float* bias, \
                        int64_t in_size, int64_t out_size, Y* y) {                                        \
        return linear<A>(x, stride, num_rows, weight, bias, in_size, out_size, y);                        \
    }

DEFINE(linear_bf16, bf16, bf16, bf16)
DEFINE(linear_bf16_to_f32, bf16, bf16, float)
DEFINE(linear_f32, float, float, float)
DEFINE(linear_f32_of_bf16, bf16, float, float)

// weight [N, K] to `out`, which has memory for whole panels and tiles.
extern "C" int linear_pack_bf16(const bf16* weight, int64_t N, int64_t K, bf16* out) {
    pack<bf16>(weight, N, K, out, 0, 1);
    return 0;
}
extern "C" int linear_pack_f32(const float* weight, int64_t N, int64_t K, float* out) {
    pack<float>(weight, N, K, out, 0, 1);
    return 0;
}
