// silu_mul. Contract: kernels/silu_mul/__init__.py.
#include "../native/pool.h"
#include "silu.h"

#include <cmath>

namespace {

using namespace native;

template <typename T>
void silu_mul(const T* gate_up, T* y, int64_t num_rows, int64_t size) {
    parallel_spans(num_rows, 4, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            const T* gate = gate_up + row * 2 * size;
            const T* up = gate + size;
            T* out = y + row * size;
            const int64_t whole = size / LANES * LANES;
            for (int64_t i = 0; i < whole; i += LANES) store(out + i, silu(load(gate + i)) * load(up + i));
            for (int64_t i = whole; i < size; ++i) {
                const float g = load1(gate + i);
                store1(out + i, g / (1.0f + std::exp(-g)) * load1(up + i));
            }
        }
    });
}

}  // namespace

extern "C" {
void silu_mul_bf16(const native::bf16* gate_up, native::bf16* y, int64_t num_rows, int64_t size) {
    silu_mul(gate_up, y, num_rows, size);
}
void silu_mul_f32(const float* gate_up, float* y, int64_t num_rows, int64_t size) {
    silu_mul(gate_up, y, num_rows, size);
}
}
