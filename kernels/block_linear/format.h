// From what one format says of its blocks to its codec.
//
// A format is a struct with
//
//     VALUES, BYTES  of a block, as kernels/block_weight.py has them
//     HEAD           how many of these bytes hold scales, minima and the like
//     BITS           of a code as it is packed: 4, 5, 6 or 8
//     GROUP          values that share a scale: 16, or a multiple of 32
//     OFFSET         what is subtracted of a code, unless it is a float
//     HAS_MIN        whether a group has a minimum too: value = scale * (code - OFFSET) + min
//     unpack(block, codes)             the codes of a block's values, in their order
//     pack_head(block, column, heads)  its scales to the heads of 16 columns' blocks, 16 * HEAD bytes
//     scales(heads, scales, mins)      of each group of these blocks, for 16 columns; of products in integers, scales
//                                      have 22 significant bits at most
//
// and, where they are needed,
//
//     TABLE          16 uint8, which codes of 4 bits stand for before OFFSET is subtracted, and MOST, their largest
//     values(four)   fp32 values of 16 columns' codes, 4 inputs of each, which the scales are multiplied with: a format
//                    of floats, whose products are never computed in integers
//
// Packed codes lie in units of 32 inputs: 64 bytes hold the low 4 bits of 8 inputs of 16 columns, those of inputs 0 to
// 3 in the low halves of bytes [column][input]; behind the four of them 64 bytes have a 5th bit (bit k of a byte: of
// step k, which is inputs 4k to 4k + 3), or twice 64 the 5th and 6th (of steps 0 to 3 and of 4 to 7). 8 bits: 64 bytes
// a step.
#pragma once

#include "product.h"

#include <algorithm>
#include <array>

namespace native {

// 32 codes of each of 16 columns, which are `stride` bytes apart, to a unit.
template <typename F>
inline void put_codes(const uint8_t* codes, int64_t stride, uint8_t* unit) {
    constexpr int HIGH = F::BITS == 5 ? 64 : F::BITS == 6 ? 128 : 0;  // bytes with what nibbles cannot hold
    u16x low{}, high[2] = {};
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
        u16x own;
        for (int column = 0; column < PANEL; ++column) {
            uint32_t four;
            std::memcpy(&four, codes + column * stride + 4 * step, sizeof four);
            own[column] = four;
        }
        if constexpr (F::BITS == 8) {
            std::memcpy(unit + 64 * step, &own, sizeof own);
        } else {
            const u16x nibbles = own & 0x0f0f0f0fu, rest = own >> 4 & 0x0f0f0f0fu;
            low = step % 2 ? low | nibbles << 4 : nibbles;
            if (step % 2) std::memcpy(unit + step / 2 * 64, &low, sizeof low);
            if constexpr (F::BITS == 5) high[0] |= rest << step;
            if constexpr (F::BITS == 6) high[step / 4] |= rest << 2 * (step % 4);
        }
    }
    std::memcpy(unit + 256, high, HIGH);
}

template <typename F>
void pack_blocks(const uint8_t* const (&blocks)[16], uint8_t* heads, uint8_t* codes) {
    uint8_t own[PANEL][F::VALUES];
    for (int column = 0; column < PANEL; ++column) {
        F::unpack(blocks[column], own[column]);
        F::pack_head(blocks[column], column, heads);
    }
    for (int unit = 0; unit < F::VALUES / 32; ++unit)
        put_codes<F>(own[0] + 32 * unit, F::VALUES, codes + unit * UNIT<F>);
}

// Four inputs' values of 16 columns, before their scale.
template <typename F>
__attribute__((always_inline)) inline std::array<v16, 4> numbers(u16x codes) {
    if constexpr (IsFloat<F>::value) {
        return F::values(codes);
    } else {
        std::array<v16, 4> values;
        for (int i = 0; i < 4; ++i) values[i] = __builtin_convertvector((i16x)(codes >> 8 * i & 255u) - F::OFFSET, v16);
        return values;
    }
}

// to(step of four inputs, their values of 16 columns) for each of a panel.
template <typename F, typename To>
__attribute__((always_inline)) inline void each_four(const uint8_t* heads, const uint8_t* codes, const To& to) {
    v16 scales[NUM_GROUPS<F>], mins[NUM_GROUPS<F>];
    F::scales(heads, scales, mins);
    for (int unit = 0; unit < F::VALUES / 32; ++unit)
#pragma GCC unroll 8
        for (int step = 0; step < 8; ++step) {
            std::array<v16, 4> values = numbers<F>(codes_at<F>(codes + unit * UNIT<F>, step));
            const int group = (32 * unit + 4 * step) / F::GROUP;
            for (v16& value : values)
                if constexpr (F::HAS_MIN)
                    value = multiply_add(mins[group], value, scales[group]);
                else
                    value *= scales[group];
            to(8 * unit + step, values);
        }
}

template <typename F>
void decode_block(const uint8_t* block, float* out) {
    uint8_t heads[16 * F::HEAD], codes[F::VALUES / 32 * UNIT<F>];
    const uint8_t* blocks[16];
    std::fill_n(blocks, 16, block);
    pack_blocks<F>(blocks, heads, codes);
    each_four<F>(heads, codes, [&](int step, const std::array<v16, 4>& values) {
        for (int i = 0; i < 4; ++i) out[4 * step + i] = values[i][0];
    });
}

// Two inputs' values of 16 columns as a panel of bf16 holds them.
inline void store_pairs(v16 first, v16 second, bf16* to) {
#if defined(__AVX512BF16__)
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(places, both));
#else
    const auto rounded = [](v16 x) {
        const u16x bits = (u16x)x;
        return bits + 0x7fffu + ((bits >> 16) & 1u);
    };
    const u16x both = (rounded(first) >> 16) | (rounded(second) & 0xffff0000u);
    std::memcpy(to, &both, sizeof both);
#endif
}

template <typename F, typename A>
void widen(const BlockPanel& panel, A* out) {
    const uint8_t *heads = panel.heads, *codes = panel.codes;
    for (int64_t b = 0; b < panel.num_blocks; ++b) {
        each_four<F>(heads, codes, [&](int step, const std::array<v16, 4>& values) {
            A* const to = out + step * 4 * PANEL;
            if constexpr (sizeof(A) == 2) {
                store_pairs(values[0], values[1], to);
                store_pairs(values[2], values[3], to + 2 * PANEL);
            } else {
                for (int i = 0; i < 4; ++i) store(to + i * PANEL, values[i]);
            }
        });
        heads += PANEL * F::HEAD, codes += F::VALUES / 32 * UNIT<F>, out += F::VALUES * PANEL;
    }
}

template <typename F>
constexpr RowKind rows_of() {
    if constexpr (IsFloat<F>::value)
        return {INPUT_GROUP<F>, 0, false};
    else
        return {INPUT_GROUP<F>, F::OFFSET, F::GROUP < 32};
}

template <typename F>
constexpr Codec plain_codec() {
    Codec codec{F::VALUES, F::BYTES, F::HEAD, rows_of<F>()};
    codec.multiply = multiply_plain<F>;
    return codec;
}
template <typename F>
constexpr Codec PLAIN = plain_codec<F>();

template <typename F>
constexpr Codec codec_of(const char* name) {
    Codec codec{F::VALUES, F::BYTES, F::HEAD, rows_of<F>()};
    codec.name = name;
    codec.decode = decode_block<F>;
    codec.pack = pack_blocks<F>;
    codec.widen_bf16 = widen<F, bf16>;
    codec.widen_float = widen<F, float>;
    if constexpr (!IsFloat<F>::value) {
        codec.multiply = multiply<F>;
        if constexpr (HAS_TILES || F::VALUES > INPUT_GROUP<F>)  // what is unpacked for every 6 rows is little otherwise
            codec.plain = &PLAIN<Plain<F>>, codec.unpack = unpack<F>;
    }
    return codec;
}

// 16 halves as floats.
inline v16 load_halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return (v16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
    const auto* const half = reinterpret_cast<const __m128i*>(from);
    const __m256 both[2] = {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
    v16 x;
    std::memcpy(&x, both, sizeof x);
    return x;
#endif
}

}  // namespace native
