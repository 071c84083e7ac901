// rotary. Contract: kernels/rotary/__init__.py.
#include "../native/pool.h"
#include "rotary.h"

namespace {

using namespace native;

// Heads of rows of x to those of y, by their strides; cos and sin: [num_rows, dim], laid out as the contract says.
template <typename T>
int rotary(const T* x, int64_t x_row, int64_t x_head, const float* cos, const float* sin, T* y, int64_t y_row,
           int64_t y_head, int64_t num_rows, int64_t num_heads, int64_t dim) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t head = 0; head < num_heads; ++head)
                rotate(x + row * x_row + head * x_head, cos + row * dim, sin + row * dim,
                       y + row * y_row + head * y_head, dim);
    });
    return 0;
}

}  // namespace

#define DEFINE(NAME, T)                                                                                      \
    extern "C" int NAME(const T* x, int64_t x_row, int64_t x_head, const float* cos, const float* sin, T* y, \
                        int64_t y_row, int64_t y_head, int64_t num_rows, int64_t num_heads, int64_t dim) {   \
        return rotary(x, x_row, x_head, cos, sin, y, y_row, y_head, num_rows, num_heads, dim);               \
    }

DEFINE(rotary_bf16, native::bf16)
DEFINE(rotary_f32, float)
