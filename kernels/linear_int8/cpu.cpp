// An int8 linear layer with uint8 input. Contract: kernels/linear_int8/__init__.py.
//
// The rows are made uint8 first; then each task computes all rows for its share of the weight's panels, so that the
// weight is read once (with up to 32 rows) and stays in cache beyond.
#include "../native/gemm.h"

#include <algorithm>

namespace {

using namespace native;

struct Layer {
    const int8_t* weight;   // packed [N, K]
    const float* scales;    // [N], with memory for whole panels, as the next two
    const int32_t* totals;  // [N]: the sum of each row of the weight
    const float* bias;      // [N] or null
    int64_t in_size, out_size;
    Grid grid;              // scale 0: each row its own
};

// The sums of M rows and one panel to numbers, `count` of its columns.
template <typename Y>
void finish(const Layer& layer, const int32_t* sums, const Grid* grids, int64_t M, int64_t first, int64_t count, Y* y) {
    const v16 scales = load(layer.scales + first), bias = layer.bias ? load(layer.bias + first) : v16{};
    i16x totals;
    std::memcpy(&totals, layer.totals + first, sizeof totals);
    for (int64_t m = 0; m < M; ++m) {
        i16x sum;
        std::memcpy(&sum, sums + m * BLOCK, sizeof sum);
        const v16 value = __builtin_convertvector(sum - totals * grids[m].zero, v16) * grids[m].scale * scales + bias;
        Y* to = y + m * layer.out_size + first;
        if (count == PANEL) {
            store(to, value);
        } else {
            for (int64_t n = 0; n < count; ++n) store1(to + n, value[n]);
        }
    }
}

template <typename T, typename Y>
int linear_int8(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<uint8_t>(layer.in_size), panel = K * PANEL;
    const int64_t num_panels = (layer.out_size + PANEL - 1) / PANEL;
    static thread_local Scratch<uint8_t> rows;
    static thread_local Scratch<Grid> grids;
    uint8_t* const quantized = rows.room(round_up(num_rows, 16) * K);
    Grid* const used = grids.room(num_rows);
    parallel_spans(num_rows, 2, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) used[row] = quantize_row(x + row * stride, layer.in_size, K, quantized + row * K, layer.grid);
    });
    parallel_spans((num_panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        alignas(64) int32_t sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const int8_t* left = layer.weight + 2 * pair * panel;
            const int8_t* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const int64_t first = pair * BLOCK, count = layer.out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(quantized + row * K, K, M, left, right, K, sums, row == 0);
                Y* out = y + row * layer.out_size;
                finish(layer, sums, used + row, M, first, std::min(PANEL, count), out);
                if (count > PANEL) finish(layer, sums + PANEL, used + row, M, first + PANEL, std::min(PANEL, count - PANEL), out);
            }
        }
    });
    return 0;
}

}  // namespace

extern "C" {

// weight [N, K] to `out`, which has memory for round_up(N, 16) * round_up(K, 64) values.
int linear_int8_pack(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    native::pack<uint8_t>(weight, N, K, out, 0, 1);
    return 0;
}

#define DEFINE(NAME, T, Y)                                                                                                   \
    int NAME(const T* x, int64_t stride, int64_t num_rows, const int8_t* weight, const float* scales, const int32_t* totals, \
             const float* bias, int64_t in_size, int64_t out_size, float scale, int64_t zero, Y* y) {                         \
        const Layer layer{weight, scales, totals, bias, in_size, out_size, {scale, int32_t(zero)}};                           \
        return linear_int8(x, stride, num_rows, layer, y);                                                                    \
    }

DEFINE(linear_int8_bf16, native::bf16, native::bf16)
DEFINE(linear_int8_f32, float, float)
DEFINE(linear_int8_bf16_to_f32, native::bf16, float)
}
