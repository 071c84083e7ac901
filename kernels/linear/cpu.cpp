// A linear layer in bf16. Contract: kernels/linear/__init__.py.
//
// Each task computes all rows for its share of the weight's panels, so that the weight is read once (with up to 32 rows)
// and stays in cache beyond.
#include "../native/gemm.h"

#include <algorithm>

namespace {

using namespace native;

// Rows whose number and length are whole tiles; `x` itself where it is so already.
struct Whole {
    const bf16* rows;
    int64_t stride;
};

Whole whole_rows(const bf16* x, int64_t stride, int64_t num_rows, int64_t size) {
    const int64_t K = padded<bf16>(size);
    if (num_rows % 16 == 0 && K == size) return {x, stride};
    static thread_local Scratch<bf16> copy;
    bf16* const to = copy.room(round_up(num_rows, 16) * K);
    parallel_spans(num_rows, 32, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            std::memcpy(to + row * K, x + row * stride, size * sizeof(bf16));
            std::memset(to + row * K + size, 0, (K - size) * sizeof(bf16));
        }
    });
    return {to, K};
}

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

template <typename Y>
int linear(const bf16* x, int64_t stride, int64_t num_rows, const bf16* weight, const float* bias, int64_t in_size, int64_t out_size, Y* y) {
    const int64_t K = padded<bf16>(in_size), panel = K * PANEL, num_panels = (out_size + PANEL - 1) / PANEL;
    const Whole a = whole_rows(x, stride, num_rows, in_size);
    parallel_spans((num_panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        alignas(64) float sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const bf16* left = weight + 2 * pair * panel;
            const bf16* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const int64_t first = pair * BLOCK, count = out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(a.rows + row * a.stride, a.stride, M, left, right, K, sums);
                Y* out = y + row * out_size + first;
                finish(sums, bias ? bias + first : nullptr, M, count, out, out_size);
                if (count > PANEL) finish(sums + PANEL, bias ? bias + first + PANEL : nullptr, M, count - PANEL, out + PANEL, out_size);
            }
        }
    });
    return 0;
}

}  // namespace

extern "C" {

// weight [N, K] to `out`, which has memory for round_up(N, 16) * round_up(K, 32) values.
int linear_pack(const native::bf16* weight, int64_t N, int64_t K, native::bf16* out) {
    native::pack<native::bf16>(weight, N, K, out, 0, 1);
    return 0;
}

// bias: null, or fp32 with memory for whole panels.
int linear_bf16(const native::bf16* x, int64_t stride, int64_t num_rows, const native::bf16* weight, const float* bias, int64_t in_size, int64_t out_size, native::bf16* y) {
    return linear(x, stride, num_rows, weight, bias, in_size, out_size, y);
}
int linear_f32(const native::bf16* x, int64_t stride, int64_t num_rows, const native::bf16* weight, const float* bias, int64_t in_size, int64_t out_size, float* y) {
    return linear(x, stride, num_rows, weight, bias, in_size, out_size, y);
}
}
