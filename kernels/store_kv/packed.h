// Rows of a cache in 4 and 5 bits, as kernels/packed_rows.py says: rotating, encoding, and decoding 16 or 32 values.
#pragma once

#include "../native/hadamard.h"
#include "../native/panels.h"

#include <algorithm>
#include <cmath>

namespace native {

struct Packed {
    uint8_t bits;
};

// What a scale of cached values is kept as.
template <typename C>
struct ScaleOf {
    typedef float type;
};
template <>
struct ScaleOf<Packed> {
    typedef bf16 type;
};
template <typename C>
using Scale = typename ScaleOf<std::remove_const_t<C>>::type;

// Elements of C that rows of so many values take: keys, values, and latents with their rotary keys.
template <typename C>
int64_t key_row(int64_t dim) {
    return std::is_same_v<std::remove_const_t<C>, Packed> ? round_up(dim, 32) / 2 + dim / 8 : dim;
}
template <typename C>
int64_t value_row(int64_t dim) {
    return std::is_same_v<std::remove_const_t<C>, Packed> ? round_up(dim, 32) / 2 : dim;
}
template <typename C>
int64_t latent_row(int64_t latent_dim, int64_t rotary_dim) {
    return value_row<C>(latent_dim) + rotary_dim;
}

inline bool can_rotate_packed(int64_t dim) { return dim % LANES == 0; }

// In place, by an orthonormal Hadamard matrix in blocks of the largest power of two, 16 to 512, that divides dim.
inline void rotate_packed(float* x, int64_t dim) {
    const int64_t block = std::min<int64_t>(dim & -dim, 512);
    rotate_row(x, dim, block, x);
    const float scale = 1 / std::sqrt(float(block));
    for (int64_t i = 0; i < dim; i += LANES) store(x + i, load(x + i) * scale);
}

constexpr float MAGNITUDES[8] = {0.12890625f, 0.388671875f, 0.65625f, 0.94140625f,
                                 1.2578125f,  1.6171875f,   2.0625f,  2.734375f};
constexpr float LEAST_SCALE = 1e-12f;

// Codes of a row of floats for the best of a few scales, which is returned; `code` gives those of 16 values divided by
// a scale, and what they stand for.
template <typename Code>
inline bf16 encode_best(const float* x, int64_t dim, float unit, const float (&factors)[7], const Code& code,
                        uint8_t* codes) {
    bf16 best{};
    float least = 0;
    for (int f = 0; f < 8; ++f) {  // at last the best one again
        bf16 narrow = best;
        if (f < 7) store1(&narrow, std::max(unit * factors[f], LEAST_SCALE));
        const float scale = load1(&narrow), inverse = 1 / scale;
        v16 errors{};
        for (int64_t i = 0; i < dim; i += LANES) {
            v16 meant;
            const v16 value = load(x + i);
            const i16x some = code(value * inverse, &meant);
            const v16 error = meant * scale - value;
            errors += error * error;
            if (f == 7) {
                const b16 bytes = __builtin_convertvector(some, b16);
                std::memcpy(codes + i, &bytes, sizeof bytes);
            }
        }
        if (const float error = sum(errors); f == 0 || (f < 7 && error < least)) least = error, best = narrow;
    }
    return best;
}

inline bf16 encode4(const float* x, int64_t dim, uint8_t* codes) {
    constexpr float FACTORS[7] = {0.85f, 0.9f, 0.95f, 1.0f, 1.05f, 1.1f, 1.15f};
    v16 squares{};
    for (int64_t i = 0; i < dim; i += LANES) squares += load(x + i) * load(x + i);
    const float deviation = std::sqrt(sum(squares) / float(dim));
    const auto code = [](v16 value, v16* meant) __attribute__((always_inline)) {
        const i16x is_negative = value < 0.0f;
        const v16 size = is_negative ? -value : value;
        i16x magnitude{};
        v16 nearest = splat(MAGNITUDES[0]);
#pragma GCC unroll 7
        for (int m = 1; m < 8; ++m) {
            const i16x is_larger = size > (MAGNITUDES[m - 1] + MAGNITUDES[m]) / 2;
            magnitude -= is_larger;
            nearest = is_larger ? splat(MAGNITUDES[m]) : nearest;
        }
        *meant = is_negative ? -nearest : nearest;
        return magnitude | (is_negative & 8);
    };
    return encode_best(x, dim, deviation, FACTORS, code, codes);
}

inline bf16 encode5(const float* x, int64_t dim, uint8_t* codes) {
    constexpr float FACTORS[7] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f};
    v16 top{};
    for (int64_t i = 0; i < dim; i += LANES) top = max(top, max(load(x + i), -load(x + i)));
    const auto code = [](v16 value, v16* meant) __attribute__((always_inline)) {
        const v16 cut = min(max((value + 31.0f) * 0.5f, v16{}), splat(31.0f));
        const v16 whole = cut + 12582912.0f - 12582912.0f;  // 1.5 * 2^23
        *meant = whole * 2.0f - 31.0f;
        return __builtin_convertvector(whole, i16x);
    };
    return encode_best(x, dim, max(top) / 31.0f, FACTORS, code, codes);
}

// 16 bytes, each in 32 bits.
inline u16x expand(const Packed* bytes) {
#if defined(__AVX512F__)
    return (u16x)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#else
    u16x all;
    const __m256i half[2] = {_mm256_cvtepu8_epi32(_mm_loadu_si64(bytes)),
                             _mm256_cvtepu8_epi32(_mm_loadu_si64(bytes + 8))};
    std::memcpy(&all, half, sizeof all);
    return all;
#endif
}

// What the lowest four bits of each lane stand for, in units of the scale.
inline v16 decode4(u16x codes) {
#if defined(__AVX512F__)
    const __m512 table =
        _mm512_setr_ps(MAGNITUDES[0], MAGNITUDES[1], MAGNITUDES[2], MAGNITUDES[3], MAGNITUDES[4], MAGNITUDES[5],
                       MAGNITUDES[6], MAGNITUDES[7], -MAGNITUDES[0], -MAGNITUDES[1], -MAGNITUDES[2], -MAGNITUDES[3],
                       -MAGNITUDES[4], -MAGNITUDES[5], -MAGNITUDES[6], -MAGNITUDES[7]);
    return (v16)_mm512_permutexvar_ps((__m512i)codes, table);
#else
    const __m256 table = _mm256_loadu_ps(MAGNITUDES);
    __m256i half[2];
    std::memcpy(half, &codes, sizeof half);
    for (__m256i& own : half) {
        const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(own, _mm256_set1_epi32(8)), 28);
        own = _mm256_xor_si256(_mm256_castps_si256(_mm256_permutevar8x32_ps(table, own)), sign);
    }
    v16 values;
    std::memcpy(&values, half, sizeof values);
    return values;
#endif
}

// Values `at` to `at + 16` of a row of 4 bits, at a multiple of 16.
inline v16 load_from(const Packed* row, int64_t at, int64_t) {
    return decode4(expand(row + at / 32 * 16) >> uint32_t(at % 32 / 4));
}

#if defined(__AVX512BF16__)

constexpr uint16_t bf16_bits(float x) {  // of a positive value that is exact in bf16: of at most 8 bits
    int exponent = 127;
    while (x >= 2) x /= 2, ++exponent;
    while (x < 1) x *= 2, --exponent;
    return uint16_t(exponent << 7 | int((x - 1) * 128));
}

// What the lowest five bits of each 16 stand for: the odd numbers from -31 to 31; and the lowest four: magnitudes.
struct CodeTables {
    alignas(64) uint16_t of5[32], of4[32];
    constexpr CodeTables() : of5(), of4() {
        for (int i = 0; i < 32; ++i) {
            of5[i] = i < 16 ? 0x8000 | bf16_bits(float(31 - 2 * i)) : bf16_bits(float(2 * i - 31));
            of4[i] = uint16_t(i << 12 & 0x8000) | bf16_bits(MAGNITUDES[i & 7]);
        }
    }
};
constexpr CodeTables CODES;

// 32 bf16 from the lowest four bits of each 16.
inline u16x decode4_bf16(__m512i codes) { return (u16x)_mm512_permutexvar_epi16(codes, _mm512_load_si512(CODES.of4)); }
// 32 bytes, each in 16 bits.
inline __m512i expand16(const Packed* bytes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
}

#endif

}  // namespace native
