// Keys and values of 4 and 5 bits in panels (layout.h): a slot's bytes into its chunk, and out of it as operands.
#pragma once

#include "../store_kv/packed.h"
#include "layout.h"

namespace native {

// A slot's codes of `dim` keys, W of which make an operand's 32 bits.
template <int64_t W>
inline void scatter_key_codes(const uint8_t* codes, int64_t dim, int64_t slot, Packed* chunk) {
    for (int64_t pair = 0; pair < dim / (2 * W); ++pair)
        for (int64_t w = 0; w < W; ++w) {
            const uint8_t* const own = codes + pair * 2 * W + w;
            chunk[(pair * CHUNK + slot) * W + w].bits = (own[0] & 15) | uint8_t(own[W] << 4);
        }
    Packed* const highest = chunk + round_up(dim, 32) / 2 * CHUNK;
    for (int64_t i = 0; i < dim / 8; ++i) {
        uint8_t bits = 0;
        for (int64_t r = 0; r < 8 / W; ++r)
            for (int64_t w = 0; w < W; ++w) bits |= uint8_t((codes[8 * i + W * r + w] >> 4) << (r + 4 * w));
        highest[i * CHUNK + slot].bits = bits;
    }
}
// A slot's codes of values; `codes` are filled up with zeros to a multiple of 32.
template <int64_t W>
inline void scatter_value_codes(const uint8_t* codes, int64_t dim, int64_t slot, Packed* chunk) {
    Packed* const to = chunk + slot / W * W * value_row<Packed>(dim) + slot % W;
    for (int64_t d = 0; d < dim; d += 32)
        for (int64_t i = 0; i < 16; ++i) to[(d / 2 + i) * W].bits = codes[d + i] | uint8_t(codes[d + 16 + i] << 4);
}

// The keys of 16 slots from dimension d on, a multiple of W, as operands.
template <typename O>
inline u16x key_operands(const Packed* chunk, int64_t d, int64_t dim) {
    constexpr int64_t W = GROUP<O>;
    const int64_t g = d / W;
    const Packed* const highest = chunk + round_up(dim, 32) / 2 * CHUNK + d / 8 * CHUNK;
#if defined(__AVX512BF16__)
    if constexpr (W == 2) {
        const __m512i low = _mm512_srl_epi16(expand16(chunk + g / 2 * 32), _mm_cvtsi64_si128(g % 2 * 4));
        const u16x bits = expand(highest);  // four of them for each half of a lane
        const __m512i high = _mm512_sll_epi16((__m512i)(bits | bits << 12), _mm_cvtsi64_si128(4 - g % 4));
        const __m512i codes = _mm512_ternarylogic_epi32(_mm512_set1_epi16(15), low, high, 0xca);  // 15 ? low : high
        return (u16x)_mm512_permutexvar_epi16(codes, _mm512_load_si512(CODES.of5));
    }
#endif
    const u16x low = expand(chunk + g / 2 * 16) >> uint32_t(g % 2 * 4) & 15u;
    const u16x high = expand(highest) >> uint32_t(g % 8) & 1u;
    return (u16x)(__builtin_convertvector((i16x)(low + high * 16u), v16) * 2.0f - 31.0f);
}
// The values of slots from `slot` on, W of them, in 16 dimensions from d on.
template <typename O>
inline u16x value_operands(const Packed* chunk, int64_t slot, int64_t d, int64_t dim) {
    constexpr int64_t W = GROUP<O>;
    const Packed* const from = chunk + slot * value_row<Packed>(dim) + d / 32 * 16 * W;
#if defined(__AVX512BF16__)
    if constexpr (W == 2) return decode4_bf16(_mm512_srl_epi16(expand16(from), _mm_cvtsi64_si128(d % 32 / 4)));
#endif
    return (u16x)decode4(expand(from) >> uint32_t(d % 32 / 4));
}

// What lies there, to be fetched: a line when its first dimension comes.
template <typename O>
inline void fetch_keys(const Packed* chunk, int64_t d, int64_t dim) {
    if (d % 8 == 0) __builtin_prefetch(chunk + d * (CHUNK / 2), 0, 2);
    if (d % 32 == 0) __builtin_prefetch(chunk + round_up(dim, 32) / 2 * CHUNK + d * (CHUNK / 8), 0, 2);
}
template <typename O>
inline void fetch_values(const Packed* chunk, int64_t slot, int64_t d, int64_t dim) {
    if (d % 32 == 0) __builtin_prefetch(chunk + slot * value_row<Packed>(dim) + d / 2 * GROUP<O>, 0, 2);
}

}  // namespace native
