// MXFP4 as ggml has it: {E8M0 scale; byte j: value j | value j + 16 << 4}, values in e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6
// and a sign. Doubled they are whole numbers, so a scale is 2^(e - 128). Scales below 2^-126 count as 0.
#include "../format.h"
#include "low_bits.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 32, BYTES = 17, HEAD = 1, BITS = 4, GROUP = 32, OFFSET = 12, MOST = 24;
    static constexpr bool HAS_MIN = false;
    alignas(16) static constexpr uint8_t TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

    static void unpack(const uint8_t* block, uint8_t* codes) { unpack_nibbles<VALUES>(block + 1, codes); }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) { heads[column] = *block; }
    static void scales(const uint8_t* heads, v16* scales, v16*) {
        typedef uint8_t Bytes __attribute__((vector_size(16)));
        Bytes exponents;
        std::memcpy(&exponents, heads, sizeof exponents);
        exponents -= Bytes(exponents > 0) & 1;
        *scales = (v16)(__builtin_convertvector(exponents, u16x) << 23);
    }
};

}  // namespace

const native::Codec native::MXFP4 = native::codec_of<Format>("mxfp4");
