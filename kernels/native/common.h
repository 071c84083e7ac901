// What the native CPU kernels share: 16 floats at a time, in bf16 or fp32 memory, on any instruction set.
//
// GCC and Clang vector extensions only: a v16 becomes one AVX-512 register or two AVX2 ones, so one source serves both.
#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

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

typedef int8_t b16 __attribute__((vector_size(16)));

inline v16 load(const int8_t* p) {
#if defined(__AVX512F__)
    return (v16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    i16x whole;
    const __m256i half[2] = {_mm256_cvtepi8_epi32(_mm_loadu_si64(p)), _mm256_cvtepi8_epi32(_mm_loadu_si64(p + 8))};
    std::memcpy(&whole, half, sizeof whole);
    return __builtin_convertvector(whole, v16);
#endif
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

// Round to the nearest integer, ties to even, of values within -128 and 127.
inline void store(int8_t* p, v16 x) {
    const v16 rounded = x + 12582912.0f - 12582912.0f;  // 1.5 * 2^23
    const b16 bytes = __builtin_convertvector(__builtin_convertvector(rounded, i16x), b16);
    std::memcpy(p, &bytes, sizeof bytes);
}

// One value, for the ends of rows that are no multiple of 16.
inline float load1(const float* p) { return *p; }
inline float load1(const bf16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
template <typename T>
inline void store1(T* p, float x) {
    T out[LANES];
    store(out, splat(x));
    *p = out[0];
}

// 16 values, or those up to the row's end and zeros.
template <typename T>
inline v16 load_from(const T* row, int64_t at, int64_t dim) {
    if (dim - at >= LANES) return load(row + at);
    T some[LANES] = {};
    std::memcpy(some, row + at, (dim - at) * sizeof(T));
    return load(some);
}
template <typename T>
inline void store_to(T* row, int64_t at, int64_t dim, v16 x) {
    if (dim - at >= LANES) return store(row + at, x);
    for (int64_t i = 0; at + i < dim; ++i) store1(row + at + i, x[i]);
}

inline float sum(v16 x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    const v8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const v4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    return (b[0] + b[2]) + (b[1] + b[3]);
}

inline float max(v16 x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    const v8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
             b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    const v8 c = a > b ? a : b;
    const v4 d = __builtin_shufflevector(c, c, 0, 1, 2, 3), e = __builtin_shufflevector(c, c, 4, 5, 6, 7);
    const v4 f = d > e ? d : e;
    const float g = f[0] > f[2] ? f[0] : f[2], h = f[1] > f[3] ? f[1] : f[3];
    return g > h ? g : h;
}

// a where it is the larger (smaller), else b, also where one of them is NaN.
inline v16 max(v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
inline v16 min(v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}

// zero + x, x within +-2^22 rounded to whole numbers (halves to even), brought within 0 and 255.
inline void store_uint8(uint8_t* p, v16 x, int32_t zero) {
#if defined(__AVX512F__)
    const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)x), _mm512_set1_epi32(zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
#else
    typedef uint8_t bytes __attribute__((vector_size(16)));
    i16x q = __builtin_convertvector((x + 12582912.0f) - 12582912.0f, i16x) + zero;  // 1.5 * 2^23
    q = q < 0 ? (q & 0) : q;
    q = q > 255 ? (q & 0) + 255 : q;
    const bytes out = __builtin_convertvector(q, bytes);
    std::memcpy(p, &out, sizeof out);
#endif
}

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

// 2^x for x <= 0 (with AVX-512 for x < 127), to 3e-6 where Precise is false.
template <bool Precise>
inline v16 exp2(v16 x) {
#if defined(__AVX512F__)
    x = (v16)_mm512_max_ps((__m512)splat(-126.0f), (__m512)x);  // results below the normal numbers are slow; NaN stays
    const v16 r = (v16)_mm512_reduce_ps((__m512)x, 9);          // x - floor(x)
    v16 p;
    if constexpr (Precise) {
        p = r * 2.1702255e-4f + 1.2439688e-3f;
        p = p * r + 9.6788406e-3f;
        p = p * r + 5.5483341e-2f;
        p = p * r + 2.4022983e-1f;
        p = p * r + 6.9314700e-1f;
        p = p * r + 1.0f;
    } else {
        p = r * 1.3534168e-2f + 5.2011460e-2f;
        p = p * r + 2.4144275e-1f;
        p = p * r + 6.9300383e-1f;
        p = p * r + 1.0f;
    }
    return (v16)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return exp(x * 0.69314718056f);
#endif
}

}  // namespace native
