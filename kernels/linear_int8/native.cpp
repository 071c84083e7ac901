// An int8 linear layer, its input uint8 or numbers. Contract: kernels/linear_int8/__init__.py.
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
    Grid grid;  // scale 0: each row its own
};

// The sums of M rows and one panel to numbers, `count` of its columns.
template <typename Y>
void finish(const Layer& layer, const int32_t* sums, const Grid* grids, int64_t M, int64_t first, int64_t count, Y* y) {
    const Scaling<uint8_t> scaling(layer.scales, layer.totals, first);
    const v16 bias = layer.bias ? load(layer.bias + first) : v16{};
    const int64_t stride = layer.out_size;
    for (int64_t m = 0; m < M; ++m) {
        const v16 value = scaling(sums + m * BLOCK, grids + m) + bias;
        Y* to = y + m * stride + first;
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
        for (int64_t row = begin; row < end; ++row)
            used[row] = quantize_row(x + row * stride, layer.in_size, K, quantized + row * K, layer.grid);
    });
    parallel_pairs((num_panels + 1) / 2, [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) int32_t sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const int8_t* left = layer.weight + 2 * pair * panel;
            const int8_t* right = 2 * pair + 1 < num_panels ? left + panel : left;  // an odd one out is computed twice
            const int8_t* next =
                layer.weight +
                std::min(2 * (pair + 1 < end ? pair + 1 : next_pair), std::max<int64_t>(num_panels - 2, 0)) * panel;
            const int64_t first = pair * BLOCK, count = layer.out_size - first;
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(quantized + row * K, K, M, left, right, K, sums, row ? nullptr : next);
                Y* out = y + row * layer.out_size;
                finish(layer, sums, used + row, M, first, std::min(PANEL, count), out);
                if (count > PANEL)
                    finish(layer, sums + PANEL, used + row, M, first + PANEL, std::min(PANEL, count - PANEL), out);
            }
        }
    });
    return 0;
}

// Weights alone are int8: a panel at a time becomes numbers, in the caches, and is multiplied as such.
template <typename A, typename T, typename Y>
int weight_only(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<A>(layer.in_size), panel = K * PANEL, num_panels = (layer.out_size + PANEL - 1) / PANEL;
    const Whole<A> a = whole_rows<T, A>(x, stride, num_rows, layer.in_size);
    parallel_spans((num_panels + 1) / 2, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        A* const numbers = reinterpret_cast<A*>(scratch(2 * panel * sizeof(A)));
        alignas(64) float sums[BLOCK * BLOCK];
        for (int64_t pair = begin; pair < end; ++pair) {
            const int64_t first = pair * BLOCK, count = layer.out_size - first, panels = count > PANEL ? 2 : 1;
            const int8_t* from = layer.weight + 2 * pair * panel;
            for (int64_t i = 0; i < panels * panel; i += LANES) {
                typedef int8_t b16 __attribute__((vector_size(16)));
                b16 bytes;
                std::memcpy(&bytes, from + i, sizeof bytes);
                store(numbers + i, __builtin_convertvector(bytes, v16));
            }
            for (int64_t row = 0; row < num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, num_rows - row);
                multiply(a.rows + row * a.stride, a.stride, M, numbers, panels > 1 ? numbers + panel : numbers, K, sums,
                         nullptr);
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t p = 0; p < panels; ++p) {
                        const int64_t at = first + p * PANEL;
                        const v16 value = load(sums + m * BLOCK + p * PANEL) * load(layer.scales + at) +
                                          (layer.bias ? load(layer.bias + at) : v16{});
                        store_to(y + (row + m) * layer.out_size, at, layer.out_size, value);
                    }
            }
        }
    });
    return 0;
}

// weight [N, K] in panels as for numbers of type A.
template <typename A>
int pack_weight_only(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    const int64_t size = padded<A>(K) * PANEL;
    std::memset(out, 0, round_up(N, PANEL) / PANEL * size);
    parallel_spans((N + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin * PANEL; row < std::min(end * PANEL, N); ++row)
            for (int64_t k = 0; k < K; ++k)
                out[row / PANEL * size + (k / GROUP<A> * PANEL + row % PANEL) * GROUP<A> + k % GROUP<A>] =
                    weight[row * K + k];
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

int weight_only_pack_bf16(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    return pack_weight_only<native::bf16>(weight, N, K, out);
}
int weight_only_pack_f32(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    return pack_weight_only<float>(weight, N, K, out);
}

#define DEFINE(NAME, T, Y)                                                                                           \
    int NAME(const T* x, int64_t stride, int64_t num_rows, const int8_t* weight, const float* scales,                \
             const int32_t* totals, const float* bias, int64_t in_size, int64_t out_size, float scale, int64_t zero, \
             Y* y) {                                                                                                 \
        const Layer layer{weight, scales, totals, bias, in_size, out_size, {scale, int32_t(zero)}};                  \
        return linear_int8(x, stride, num_rows, layer, y);                                                           \
    }

#define DEFINE_WEIGHT_ONLY(NAME, T, Y)                                                                \
    int NAME(const T* x, int64_t stride, int64_t num_rows, const int8_t* weight, const float* scales, \
             const float* bias, int64_t in_size, int64_t out_size, Y* y) {                            \
        const Layer layer{weight, scales, nullptr, bias, in_size, out_size, {}};                      \
        return weight_only<T>(x, stride, num_rows, layer, y);                                         \
    }

DEFINE_WEIGHT_ONLY(weight_only_bf16, native::bf16, native::bf16)
DEFINE_WEIGHT_ONLY(weight_only_f32, float, float)
DEFINE_WEIGHT_ONLY(weight_only_bf16_to_f32, native::bf16, float)
DEFINE(linear_int8_bf16, native::bf16, native::bf16)
DEFINE(linear_int8_f32, float, float)
DEFINE(linear_int8_bf16_to_f32, native::bf16, float)
}
