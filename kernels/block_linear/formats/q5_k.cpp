// ggml's Q5_K: {as Q4_K; 32 bytes of fifth bits: bit g of byte j for value j of group g; low bits as Q4_K's codes};
// value = d * scale * code - dmin * minimum, each of 32 values.
#include "k_scales.h"
#include "low_bits.h"

namespace {

struct Format : native::KScales {
    static constexpr int VALUES = 256, BYTES = 176, BITS = 5, GROUP = 32, OFFSET = 0;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int part = 0; part < 4; ++part) native::unpack_nibbles<64>(block + 48 + 32 * part, codes + 64 * part);
        for (int i = 0; i < 256; ++i) codes[i] |= uint8_t((block[16 + i % 32] >> i / 32 & 1) << 4);
    }
};

}  // namespace

const native::Codec native::Q5_K = native::codec_of<Format>("q5_k");
