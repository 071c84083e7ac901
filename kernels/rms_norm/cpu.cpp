// rms_norm and add_rms_norm. Contract: kernels/rms_norm/__init__.py.
#include "../native/common.h"
#include "../native/pool.h"

#include <cmath>

namespace {

using namespace native;

// y = in * rsqrt(mean(in^2) + eps) * weight
template <typename S, typename T>
void normalize(const S* in, const T* weight, T* y, int64_t size, float eps) {
    v16 squares{};
    for (int64_t i = 0; i < size; i += LANES) {
        const v16 value = load_from(in, i, size);
        squares += value * value;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / float(size) + eps);
    for (int64_t i = 0; i < size; i += LANES) store_to(y, i, size, load_from(in, i, size) * scale * load_from(weight, i, size));
}

// Rows of x, or of the residual where there is one, after x, if there is one, has been added to it. The residual's rows and
// y's lie one after another.
template <typename T>
int rms_norm(const T* x, int64_t stride, float* residual, const T* weight, T* y, int64_t num_rows, int64_t size, float eps) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            if (residual && x)
                for (int64_t i = 0; i < size; i += LANES)
                    store_to(residual + row * size, i, size, load_from(residual + row * size, i, size) + load_from(x + row * stride, i, size));
            if (residual)
                normalize(residual + row * size, weight, y + row * size, size, eps);
            else
                normalize(x + row * stride, weight, y + row * size, size, eps);
        }
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
