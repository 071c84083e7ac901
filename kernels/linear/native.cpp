// A linear layer in bf16 or fp32. Contract: kernels/linear/__init__.py.
//
// Each task computes all rows for its share of the weight's panels, so that the weight is read once (with up to 32
// rows) and stays in cache beyond.
#include "../native/gemm.h"

#include <algorithm>

namespace {

using namespace native;

template <typename Y>
void finish(const float* sums, const float* bias, int64_t M, int64_t count, Y* y, int64_t stride) {
    const v16 added = bias ? load(bias) : v16{};
    for (int64_t m = 0; m < M; ++m) {
        const v16 value = load(sums + m * BLOCK) + added;
        if (count >= PANEL)
            store(y + m * stride, value);
        else
            for (int64_t n = 0; n < count; ++n) store1(y + m * stride + n, value[n]);
    }
}

template <typename A, typename X, typename Y>
int linear(const X* x, int64_t stride, int64_t num_rows, const A* weight, const float* bias, int64_t in_size,
           int64_t out_size, Y* y) {
    const int64_t K = padded<A>(in_size), panel = K * PANEL, num_panels = (out_size + PANEL - 1) / PANEL;
    const Whole<A> a = whole_rows<X, A>(x, stride, num_rows, in_size);
    parallel_pairs((num_panels + 1) / 2, [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) float sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const A* left = weight + 2 * pair * panel;
            const A* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const A* next =
                weight +
                std::min(2 * (pair + 1 < end ? pair + 1 : next_pair), std::max<int64_t>(num_panels - 2, 0)) * panel;
            const int64_t first = pair * BLOCK, count = out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(a.rows + row * a.stride, a.stride, M, left, right, K, sums, row ? nullptr : next);
                Y* out = y + row * out_size + first;
                finish(sums, bias ? bias + first : nullptr, M, count, out, out_size);
                if (count > PANEL)
                    finish(sums + PANEL, bias ? bias + first + PANEL : nullptr, M, count - PANEL, out + PANEL,
                           out_size);
            }
        }
    });
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
