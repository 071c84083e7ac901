// Sums of products of unsigned codes and int8 inputs, 16 columns at a time, in integers: exact on any instruction set.
//
// Dot<MOST> takes codes up to MOST, four inputs of each column at a time: `add` with step 0, 1, ... of a group. A sum
// begins at BIAS_BITS plus what it shall be moved by: with less than 2^22 in it, its bits are those of a float, which
// is BIAS plus the sum, so that it need not be converted.
#pragma once

#include "../native/multiply_add.h"

namespace native {

// From how many rows on it pays to unpack a panel first: its scales, and for AMX tiles its codes. (Without tiles, bytes
// are slower than codes as they are packed: twice as much is read.)
#if defined(__AMX_INT8__)
constexpr bool HAS_TILES = true;
constexpr int MANY_ROWS = 6;
#else
constexpr bool HAS_TILES = false;
constexpr int MANY_ROWS = 12;
#endif

constexpr float BIAS = 12582912.0f;        // 1.5 * 2^23
constexpr int32_t BIAS_BITS = 0x4b400000;  // of BIAS

inline int32_t dword(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return four;
}

#if defined(__AVX512VNNI__)

// What is computed at a time, so that registers hold the sums.
constexpr int DOT_ROWS = 6, DOT_PANELS = 2;

typedef __m512i Four;
inline Four four_at(const int8_t* x) { return _mm512_set1_epi32(dword(x)); }

template <int MOST>
struct Dot {
    __m512i sums;

    void start(i16x from) { sums = (__m512i)from; }
    void add(u16x codes, Four x, int) { sums = _mm512_dpbusd_epi32(sums, (__m512i)codes, x); }
    v16 biased() const { return (v16)sums; }
};

#else

#if defined(__AVX512BW__)

constexpr int DOT_ROWS = 4, DOT_PANELS = 1;
typedef __m512i Wide;
inline Wide wide(int32_t x) { return _mm512_set1_epi32(x); }
inline Wide add16(Wide a, Wide b) { return _mm512_add_epi16(a, b); }
inline Wide add32(Wide a, Wide b) { return _mm512_add_epi32(a, b); }
inline Wide products(Wide codes, Wide x) { return _mm512_maddubs_epi16(codes, x); }
inline Wide pair_sums(Wide x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }

#else

constexpr int DOT_ROWS = 2, DOT_PANELS = 1;
typedef __m256i Wide;
inline Wide wide(int32_t x) { return _mm256_set1_epi32(x); }
inline Wide add16(Wide a, Wide b) { return _mm256_add_epi16(a, b); }
inline Wide add32(Wide a, Wide b) { return _mm256_add_epi32(a, b); }
inline Wide products(Wide codes, Wide x) { return _mm256_maddubs_epi16(codes, x); }
inline Wide pair_sums(Wide x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

#endif

typedef Wide Four;
inline Four four_at(const int8_t* x) { return wide(dword(x)); }

template <int MOST>
struct Dot {
    static constexpr int NUM = sizeof(u16x) / sizeof(Wide);
    static constexpr int STEPS = 32767 / (2 * 127 * MOST);  // after which 16 bits may be full; 0: after half of one
    Wide sums[NUM], pairs[NUM];

    void start(i16x from) {
        std::memcpy(sums, &from, sizeof from);
        for (int i = 0; i < NUM; ++i) pairs[i] = wide(0);
    }
    void add(u16x codes, Four four, int step) {
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
    v16 biased() const {
        Wide all[NUM];
        for (int i = 0; i < NUM; ++i) all[i] = add32(sums[i], pair_sums(pairs[i]));
        v16 sum;
        std::memcpy(&sum, all, sizeof sum);
        return sum;
    }
};

#endif

}  // namespace native
