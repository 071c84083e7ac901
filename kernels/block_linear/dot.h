// Sums of products of unsigned codes and int8 inputs, 16 columns at a time, in integers: exact on any instruction set.
//
// Dot<MOST> takes codes up to MOST, four inputs of each column at a time: `add` with step 0, 1, ... of a group.
#pragma once

#include "../native/multiply_add.h"

namespace native {

inline int32_t four_at(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return four;
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

#if defined(__AVX512VNNI__)

constexpr int DOT_ROWS = 8;  // computed at a time, so that registers hold their sums

template <int MOST>
struct Dot {
    __m512i sums;

    void start(i16x from) { sums = (__m512i)from; }
    void add(u16x codes, const int8_t* x, int) {
        sums = _mm512_dpbusd_epi32(sums, (__m512i)codes, _mm512_set1_epi32(four_at(x)));
    }
    v16 floats() const { return (v16)_mm512_cvtepi32_ps(sums); }
};

#else

#if defined(__AVX512BW__)

constexpr int DOT_ROWS = 8;
typedef __m512i Wide;
inline Wide wide(int32_t x) { return _mm512_set1_epi32(x); }
inline Wide add16(Wide a, Wide b) { return _mm512_add_epi16(a, b); }
inline Wide add32(Wide a, Wide b) { return _mm512_add_epi32(a, b); }
inline Wide products(Wide codes, Wide x) { return _mm512_maddubs_epi16(codes, x); }
inline Wide pair_sums(Wide x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }

#else

constexpr int DOT_ROWS = 2;
typedef __m256i Wide;
inline Wide wide(int32_t x) { return _mm256_set1_epi32(x); }
inline Wide add16(Wide a, Wide b) { return _mm256_add_epi16(a, b); }
inline Wide add32(Wide a, Wide b) { return _mm256_add_epi32(a, b); }
inline Wide products(Wide codes, Wide x) { return _mm256_maddubs_epi16(codes, x); }
inline Wide pair_sums(Wide x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

#endif

template <int MOST>
struct Dot {
    static constexpr int NUM = sizeof(u16x) / sizeof(Wide);
    static constexpr int STEPS = 32767 / (2 * 127 * MOST);  // after which 16 bits may be full; 0: after half of one
    Wide sums[NUM], pairs[NUM];

    void start(i16x from) {
        std::memcpy(sums, &from, sizeof from);
        for (int i = 0; i < NUM; ++i) pairs[i] = wide(0);
    }
    void add(u16x codes, const int8_t* x, int step) {
        const Wide four = wide(four_at(x));
        Wide own[NUM];
        std::memcpy(own, &codes, sizeof codes);
        for (int i = 0; i < NUM; ++i) {
            if constexpr (STEPS > 0) {
                if (step && step % STEPS == 0) sums[i] = add32(sums[i], pair_sums(pairs[i])), pairs[i] = wide(0);
                pairs[i] = add16(pairs[i], products(own[i], four));
            } else {
                const Wide even = own[i] & wide(0x00ff00ff), odd = own[i] & wide(int32_t(0xff00ff00));
                sums[i] = add32(sums[i], add32(pair_sums(products(even, four)), pair_sums(products(odd, four))));
            }
        }
    }
    v16 floats() const {
        Wide all[NUM];
        for (int i = 0; i < NUM; ++i) all[i] = add32(sums[i], pair_sums(pairs[i]));
        i16x whole;
        std::memcpy(&whole, all, sizeof whole);
        return __builtin_convertvector(whole, v16);
    }
};

#endif

}  // namespace native
