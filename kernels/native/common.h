// What the native CPU kernels share: 16 floats at a time, in bf16 or fp32 memory, on any instruction set.
//
// GCC and Clang vector extensions only: a v16 becomes one AVX-512 register or two AVX2 ones, so one source serves both.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace native {

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16x __attribute__((vector_size(64)));
typedef uint32_t u16x __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

struct bf16 {
    uint16_t bits;
};

constexpr int64_t LANES = 16;

inline v16 splat(float x) { return x - v16{}; }

inline v16 load(const float* p) {
    v16 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline v16 load(const bf16* p) {
    h16 half;
    std::memcpy(&half, p, sizeof half);
    const u16x bits = __builtin_convertvector(half, u16x) << 16;
    return (v16)bits;
}

inline void store(float* p, v16 x) { std::memcpy(p, &x, sizeof x); }

// Round to nearest, ties to even; NaN stays NaN. (The instruction takes subnormal numbers for 0.)
inline void store(bf16* p, v16 x) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &half, sizeof half);
#else
    u16x bits = (u16x)x;
    const u16x rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const i16x is_nan = x != x;
    bits = is_nan ? (bits | 0x400000u) : rounded;
    const h16 half = __builtin_convertvector(bits >> 16, h16);
    std::memcpy(p, &half, sizeof half);
#endif
}

// One value, for the ends of rows that are no multiple of 16.
inline float load1(const float* p) { return *p; }
inline float load1(const bf16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline void store1(float* p, float x) { *p = x; }
inline void store1(bf16* p, float x) {
    bf16 out[LANES];
    store(out, splat(x));
    *p = out[0];
}

inline v16 load_some(const float* p, int64_t count) {
    v16 x{};
    std::memcpy(&x, p, count * sizeof(float));
    return x;
}
inline v16 load_some(const bf16* p, int64_t count) {
    bf16 x[LANES] = {};
    std::memcpy(x, p, count * sizeof(bf16));
    return load(x);
}
// 16 values, or those up to the row's end and zeros.
template <typename T>
inline v16 load_from(const T* row, int64_t at, int64_t dim) {
    return dim - at >= LANES ? load(row + at) : load_some(row + at, dim - at);
}
template <typename T>
inline void store_to(T* row, int64_t at, int64_t dim, v16 x) {
    if (dim - at >= LANES) return store(row + at, x);
    for (int64_t i = 0; at + i < dim; ++i) store1(row + at + i, x[i]);
}

inline float sum(v16 x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    const v8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const v4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

inline float max(v16 x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    const v8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7), b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const v8 c = a > b ? a : b;
    const v4 d = __builtin_shufflevector(c, c, 0, 1, 2, 3), e = __builtin_shufflevector(c, c, 4, 5, 6, 7);
    const v4 f = d > e ? d : e;
    const float g = f[0] > f[2] ? f[0] : f[2], h = f[1] > f[3] ? f[1] : f[3];
    return g > h ? g : h;
}

inline v16 max(v16 a, v16 b) { return a > b ? a : b; }

// e^x to about 2 units in the last place of fp32 for x <= 0 (Cephes' expf); below -87 it is 0.
inline v16 exp(v16 x) {
    const i16x too_small = x < -87.0f;
    x = too_small ? splat(-87.0f) : x;
    const v16 shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const v16 n = shifted - 12582912.0f;
    v16 r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    v16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const i16x exponent = (__builtin_convertvector(n, i16x) + 127) << 23;
    p = p * (v16)exponent;
    return too_small ? v16{} : p;
}

}  // namespace native
