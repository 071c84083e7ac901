// ggml's Q4_K: {fp16 d, dmin; 12 bytes of 8 scales and minima in 6 bits; of each 64 values byte j: value j | value
// j + 32 << 4}; value = d * scale * code - dmin * minimum, each of 32 values.
#include "k_scales.h"
#include "low_bits.h"

namespace {

struct Format : native::KScales {
    static constexpr int VALUES = 256, BYTES = 144, BITS = 4, GROUP = 32, OFFSET = 0;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int part = 0; part < 4; ++part) native::unpack_nibbles<64>(block + 16 + 32 * part, codes + 64 * part);
    }
};

}  // namespace

const native::Codec native::Q4_K = native::codec_of<Format>("q4_k");
