// rotary. Contract: kernels/rotary/__init__.py.
#include "../native/pool.h"
#include "rotary.h"

namespace {

using namespace native;

// x: rows of num_heads * dim values, `row_stride` apart; y: packed; cos and sin: [num_rows, dim], laid out as the contract says.
template <typename T>
void rotary(const T* x, int64_t row_stride, const float* cos, const float* sin, T* y, int64_t num_rows, int64_t num_heads, int64_t dim) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t head = 0; head < num_heads; ++head)
                rotate(x + row * row_stride + head * dim, cos + row * dim, sin + row * dim, y + (row * num_heads + head) * dim, dim);
    });
}

}  // namespace

extern "C" {
void rotary_bf16(const native::bf16* x, int64_t row_stride, const float* cos, const float* sin, native::bf16* y, int64_t num_rows, int64_t num_heads, int64_t dim) {
    rotary(x, row_stride, cos, sin, y, num_rows, num_heads, dim);
}
void rotary_f32(const float* x, int64_t row_stride, const float* cos, const float* sin, float* y, int64_t num_rows, int64_t num_heads, int64_t dim) {
    rotary(x, row_stride, cos, sin, y, num_rows, num_heads, dim);
}
}
