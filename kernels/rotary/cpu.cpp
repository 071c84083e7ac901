// rotary. Contract: kernels/rotary/__init__.py.
#include "../native/common.h"
#include "../native/pool.h"

namespace {

using namespace native;

// x: rows of num_heads * dim values, `row_stride` apart; y: packed; cos and sin: [num_rows, dim], laid out as the contract says.
template <typename T>
void rotary(const T* x, int64_t row_stride, const float* cos, const float* sin, T* y, int64_t num_rows, int64_t num_heads, int64_t dim) {
    const int64_t half = dim / 2;
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const float* c = cos + row * dim + half;
        const float* s = sin + row * dim + half;
        for (int64_t head = 0; head < num_heads; ++head) {
            const T* low = x + row * row_stride + head * dim;
            const T* high = low + half;
            T* out = y + (row * num_heads + head) * dim;
            const int64_t whole = half / LANES * LANES;
            for (int64_t i = 0; i < whole; i += LANES) {
                const v16 a = load(low + i), b = load(high + i), cs = load(c + i), sn = load(s + i);
                store(out + i, a * cs - b * sn);
                store(out + half + i, b * cs + a * sn);
            }
            for (int64_t i = whole; i < half; ++i) {
                const float a = load1(low + i), b = load1(high + i);
                store1(out + i, a * c[i] - b * s[i]);
                store1(out + half + i, b * c[i] + a * s[i]);
            }
        }
    }
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
