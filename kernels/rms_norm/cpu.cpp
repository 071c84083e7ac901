// rms_norm and add_rms_norm. Contract: kernels/rms_norm/__init__.py.
#include "../native/common.h"
#include "../native/pool.h"

#include <cmath>

namespace {

using namespace native;

// y = x * rsqrt(mean(x^2) + eps) * weight; with `residual`, x is added to it first and the sum is normalised instead.
template <typename T>
void rms_norm(const T* x, T* residual, const T* weight, T* y, int64_t num_rows, int64_t size, float eps) {
    parallel_spans(num_rows, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const T* in = x + row * size;
        T* res = residual ? residual + row * size : nullptr;
        T* out = y + row * size;
        const int64_t whole = size / LANES * LANES;
        v16 squares{};
        float rest = 0;
        for (int64_t i = 0; i < whole; i += LANES) {
            v16 value = load(in + i);
            if (res) {
                store(res + i, value + load(res + i));
                value = load(res + i);  // as rounded
            }
            squares += value * value;
        }
        for (int64_t i = whole; i < size; ++i) {
            float value = load1(in + i);
            if (res) {
                store1(res + i, value + load1(res + i));
                value = load1(res + i);
            }
            rest += value * value;
        }
        const float scale = 1.0f / std::sqrt((sum(squares) + rest) / float(size) + eps);
        const T* from = res ? res : in;
        for (int64_t i = 0; i < whole; i += LANES) store(out + i, load(from + i) * scale * load(weight + i));
        for (int64_t i = whole; i < size; ++i) store1(out + i, load1(from + i) * scale * load1(weight + i));
    }
    });
}

}  // namespace

extern "C" {
void rms_norm_bf16(const native::bf16* x, native::bf16* residual, const native::bf16* weight, native::bf16* y, int64_t num_rows, int64_t size, float eps) {
    rms_norm(x, residual, weight, y, num_rows, size, eps);
}
void rms_norm_f32(const float* x, float* residual, const float* weight, float* y, int64_t num_rows, int64_t size, float eps) {
    rms_norm(x, residual, weight, y, num_rows, size, eps);
}
}
