// The head of ggml's Q4_K and Q5_K: {fp16 d, dmin; 8 scales and 8 minima in 6 bits}. Of 16 columns: 16 d, 16 dmin, then
// three times a word of each. Word 0 has the low 6 bits of its bytes for scales 0 to 3, word 1 for minima 0 to 3; word
// 2 has 4 bits each for scales and minima 4 to 7, whose upper 2 bits are those that words 0 and 1 have left.
#pragma once

#include "scales.h"

namespace native {

struct KScales {
    static constexpr int HEAD = 16;
    static constexpr bool HAS_MIN = true;

    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        ScaleAndMin16::pack_head(block, column, heads);
        for (int word = 0; word < 3; ++word) std::memcpy(heads + 64 + 64 * word + 4 * column, block + 4 + 4 * word, 4);
    }

    __attribute__((always_inline)) static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        const v16 scale = load_halves(heads), min = -load_halves(heads + 32);
        const u16x low = dwords(heads + 64), low_mins = dwords(heads + 128), rest = dwords(heads + 192);
        // Of bytes: the four scales that words 0 and 1 hold, and the other four.
        const u16x four[2] = {low & 0x3f3f3f3fu, (rest & 0x0f0f0f0fu) | (low >> 2 & 0x30303030u)};
        const u16x four_mins[2] = {low_mins & 0x3f3f3f3fu, (rest >> 4 & 0x0f0f0f0fu) | (low_mins >> 2 & 0x30303030u)};
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            scales[i] = __builtin_convertvector((i16x)(four[i / 4] >> 8 * (i % 4) & 255u), v16) * scale;
            mins[i] = __builtin_convertvector((i16x)(four_mins[i / 4] >> 8 * (i % 4) & 255u), v16) * min;
        }
    }
};

}  // namespace native
