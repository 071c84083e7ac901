// An int8 linear layer, its input uint8 or floats. Contract: kernels/linear_int8/__init__.py.
#include "../native/panel_pairs.h"
#include "../native/quantize.h"

namespace {

using namespace native;

struct Layer {
    const int8_t* weight;   // packed [N, K]
    const float* scales;    // [N], with memory for whole panels, as the next two
    const int32_t* totals;  // [N]: the sum of each row of the weight
    const float* bias;      // [N] or null
    int64_t in_size, out_size;
    Grid grid;  // scale 0: each row its own

    v16 bias_at(int64_t column) const { return bias ? load(bias + column) : v16{}; }
};

template <typename T, typename Y>
int linear_int8(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<uint8_t>(layer.in_size);
    static thread_local Scratch<uint8_t> memory;
    static thread_local Scratch<Grid> grid_memory;
    uint8_t* const rows = memory.room(round_up(num_rows, ROWS) * K);
    Grid* const grids = grid_memory.room(num_rows);
    parallel_spans(num_rows, 2, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            grids[row] = quantize_row(x + row * stride, layer.in_size, K, rows + row * K, layer.grid);
    });
    const Scaling scaling{layer.scales, layer.totals, grids};
    const auto scaled = [&](const int32_t* sums, int64_t row, int64_t column) {
        const v16 bias = layer.bias_at(column);
        return scaling(sums, row, column) + bias;
    };
    multiply_weight<uint8_t>({rows, K}, num_rows, layer.weight, K, layer.out_size, y, scaled);
    return 0;
}

// Weights alone are int8.
template <typename A, typename T, typename Y>
int weight_only(const T* x, int64_t stride, int64_t num_rows, const Layer& layer, Y* y) {
    const int64_t K = padded<A>(layer.in_size);
    const Matrix<const A> rows = whole_rows<A>(x, stride, num_rows, layer.in_size);
    const auto scaled = [&](const float* sums, int64_t, int64_t column) {
        return load(sums) * load(layer.scales + column) + layer.bias_at(column);
    };
    multiply_weight<A>(rows, num_rows, layer.weight, K, layer.out_size, y, scaled);
    return 0;
}

// weight [N, K] in panels as for floats of type A.
template <typename A>
int pack_weight_only(const int8_t* weight, int64_t N, int64_t K, int8_t* out) {
    pack<A>(weight, N, K, out);
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
