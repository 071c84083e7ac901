// rms_norm and add_rms_norm. Contract: kernels/rms_norm/__init__.py.
#include "../native/common.h"
#include "../native/pool.h"

#include <cmath>

namespace {

using namespace native;

// y = in * rsqrt(mean(in^2) + eps) * weight, where in is x, or the residual after x, if there is one, has been added to it.
template <typename T>
void normalize(const T* x, float* residual, const T* weight, T* y, int64_t size, float eps) {
    constexpr int SUMS = 4;  // one would have to wait for itself
    v16 squares[SUMS] = {};
    const auto value_at = [&](int64_t i) { return residual ? load_from(residual, i, size) : load_from(x, i, size); };
    const auto take = [&](int64_t i, v16& sum) {
        v16 value = value_at(i);
        if (residual && x) {
            value += load_from(x, i, size);
            store_to(residual, i, size, value);
        }
        sum += value * value;
    };
    int64_t i = 0;
    for (; i + SUMS * LANES <= size; i += SUMS * LANES)
        for (int s = 0; s < SUMS; ++s) take(i + s * LANES, squares[s]);
    for (; i < size; i += LANES) take(i, squares[0]);
    const float scale = 1.0f / std::sqrt(sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(size) + eps);
    for (int64_t j = 0; j < size; j += LANES) store_to(y, j, size, value_at(j) * scale * load_from(weight, j, size));
}

// Rows of x, or of the residual where there is one: its rows and y's lie one after another.
template <typename T>
int rms_norm(const T* x, int64_t stride, float* residual, const T* weight, T* y, int64_t num_rows, int64_t size, float eps) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            normalize(x ? x + row * stride : nullptr, residual ? residual + row * size : nullptr, weight, y + row * size, size, eps);
    });
    return 0;
}

}  // namespace

#define DEFINE(NAME, T)                                                                                                              \
    extern "C" int NAME(const T* x, int64_t stride, float* residual, const T* weight, T* y, int64_t num_rows, int64_t size, float eps) { \
        return rms_norm(x, stride, residual, weight, y, num_rows, size, eps);                                                          \
    }

DEFINE(rms_norm_bf16, native::bf16)
DEFINE(rms_norm_f32, float)
