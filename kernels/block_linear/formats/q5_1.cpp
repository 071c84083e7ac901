// ggml's Q5_1: {fp16 d, m; 32 fifth bits; byte j: low bits of value j | of value j + 16 << 4}; value = d * code + m.
#include "low_bits.h"
#include "scales.h"

namespace {

struct Format : native::ScaleAndMin16 {
    static constexpr int VALUES = 32, BYTES = 24, BITS = 5, GROUP = 32, OFFSET = 0;

    static void unpack(const uint8_t* block, uint8_t* codes) { native::unpack_fives(block + 8, block + 4, codes); }
};

}  // namespace

const native::Codec native::Q5_1 = native::codec_of<Format>("q5_1");
