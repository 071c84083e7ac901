// 32 codes of 5 bits as ggml has them: low halves in 16 bytes, fifth bits in 4.
#pragma once

#include <cstdint>
#include <cstring>

namespace native {

inline void unpack_fives(const uint8_t* halves, const uint8_t* fifths, uint8_t* codes) {
    uint32_t bits;
    std::memcpy(&bits, fifths, sizeof bits);
    for (int j = 0; j < 16; ++j) {
        codes[j] = uint8_t((halves[j] & 15) | (bits >> j & 1) << 4);
        codes[16 + j] = uint8_t(halves[j] >> 4 | (bits >> (16 + j) & 1) << 4);
    }
}

}  // namespace native
