// ggml's Q5_0: {fp16 d; 32 fifth bits; byte j: low bits of value j | of value j + 16 << 4}; value = d * (code - 16).
#include "low_bits.h"
#include "scales.h"

namespace {

struct Format : native::Scale16 {
    static constexpr int VALUES = 32, BYTES = 22, BITS = 5, GROUP = 32, OFFSET = 16;

    static void unpack(const uint8_t* block, uint8_t* codes) { native::unpack_fives(block + 6, block + 2, codes); }
};

}  // namespace

const native::Codec native::Q5_0 = native::codec_of<Format>("q5_0");
