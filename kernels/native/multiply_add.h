// The step that matrix products are made of, in each instruction set but AMX: a group of a row's values times a panel's
// 16 columns, added to 16 sums in registers.
//
// Step<A> says for rows of A how many ROWS and PANELS are computed at a time, so that registers hold their sums. Fused
// multiply-adds are asked for by name: left to the compiler, a loop has them or not, and a row's bits hang on its loop.
#pragma once

#include "panels.h"

namespace native {

template <typename A>
struct Step;

// 16 groups of a panel.
template <typename T>
inline u16x dwords(const T* b) {
    u16x x;
    std::memcpy(&x, b, sizeof x);
    return x;
}

// a * b + sum, rounded once.
inline v16 multiply_add(v16 sum, v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    __m256 half[2], factor[2], by[2];
    std::memcpy(half, &sum, sizeof half);
    std::memcpy(factor, &a, sizeof factor);
    std::memcpy(by, &b, sizeof by);
    half[0] = _mm256_fmadd_ps(factor[0], by[0], half[0]);
    half[1] = _mm256_fmadd_ps(factor[1], by[1], half[1]);
    std::memcpy(&sum, half, sizeof sum);
    return sum;
#endif
}
inline v16 multiply_add(v16 sum, float a, v16 b) { return multiply_add(sum, splat(a), b); }

struct FloatSums {
    typedef v16 Sums;
#if defined(__AVX512F__)
    static constexpr int ROWS = 8, PANELS = 2;  // of 32 registers: 16 sums
#else
    static constexpr int ROWS = 4, PANELS = 1;  // of 16, two for 16 sums: 8
#endif

    static Sums load(const float* c) { return native::load(c); }
    static void store(float* c, Sums sums) { native::store(c, sums); }
    template <typename T>
    static u16x columns(const T* b) {
        return dwords(b);
    }
};

template <>
struct Step<float> : FloatSums {
    static Sums add(Sums sums, const float* a, u16x b) { return multiply_add(sums, *a, (v16)b); }
};

template <>
struct Step<bf16> : FloatSums {
    static Sums add(Sums sums, const bf16* a, u16x b) {
#if defined(__AVX512BF16__)
        int32_t pair;
        std::memcpy(&pair, a, sizeof pair);
        return (v16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
#else  // the low and the high half of each 32 bits are two values of a column
        const v16 even = (v16)(b << 16), odd = (v16)(b & 0xffff0000u);
        return sums + multiply_add(odd * load1(a + 1), load1(a), even);
#endif
    }
};

#if defined(__AVX512VNNI__)

template <>
struct Step<uint8_t> {
    typedef __m512i Sums;
    static constexpr int ROWS = 8, PANELS = 2;

    static Sums load(const int32_t* c) { return _mm512_loadu_si512(c); }
    static void store(int32_t* c, Sums sums) { _mm512_storeu_si512(c, sums); }
    static u16x columns(const int8_t* b) { return dwords(b); }
    static Sums add(Sums sums, const uint8_t* a, u16x b) {
        int32_t group;
        std::memcpy(&group, a, sizeof group);
        return _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(group), (__m512i)b);
    }
};

#else

// In 16-bit products, which are exact (vpmaddubsw, which takes bytes, would saturate). A column has two of a register's
// sums, added at the end.
template <>
struct Step<uint8_t> {
    struct Sums {
        __m256i of[4];
    };
    static constexpr int ROWS = 2, PANELS = 1;

    static Sums load(const int32_t* c) {
        Sums sums;
        for (int i = 0; i < 4; ++i) sums.of[i] = _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i*)(c + 4 * i)));
        return sums;
    }
    static void store(int32_t* c, const Sums& sums) {
        for (int i = 0; i < 4; ++i) {
            const __m256i pairs = _mm256_hadd_epi32(sums.of[i], sums.of[i]);
            _mm_storeu_si128((__m128i*)(c + 4 * i),
                             _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
        }
    }
    static Sums columns(const int8_t* b) {
        Sums columns;
        for (int i = 0; i < 4; ++i) columns.of[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(b + 16 * i)));
        return columns;
    }
    static Sums add(Sums sums, const uint8_t* a, const Sums& b) {
        int32_t group;
        std::memcpy(&group, a, sizeof group);
        const __m256i x = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(group)));
        for (int i = 0; i < 4; ++i) sums.of[i] = _mm256_add_epi32(sums.of[i], _mm256_madd_epi16(x, b.of[i]));
        return sums;
    }
};

#endif

}  // namespace native
