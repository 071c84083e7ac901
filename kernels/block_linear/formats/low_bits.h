// Codes as ggml has them: the low 4 bits of value j and of value j + half of them share a byte; of 32 codes of 5 bits
// the fifth ones are in 4 bytes.
#pragma once

#include <cstdint>
#include <cstring>

namespace native {

template <int SIZE>
inline void unpack_nibbles(const uint8_t* bytes, uint8_t* codes) {
    for (int j = 0; j < SIZE / 2; ++j) codes[j] = bytes[j] & 15, codes[SIZE / 2 + j] = bytes[j] >> 4;
}

inline void unpack_fives(const uint8_t* bytes, const uint8_t* fifths, uint8_t* codes) {
    uint32_t bits;
    std::memcpy(&bits, fifths, sizeof bits);
    unpack_nibbles<32>(bytes, codes);
    for (int j = 0; j < 32; ++j) codes[j] |= uint8_t((bits >> j & 1) << 4);
}

}  // namespace native
