// ggml's Q4_0: {fp16 d; byte j: value j | value j + 16 << 4}; value = d * (code - 8).
#include "low_bits.h"
#include "scales.h"

namespace {

struct Format : native::Scale16 {
    static constexpr int VALUES = 32, BYTES = 18, BITS = 4, GROUP = 32, OFFSET = 8;

    static void unpack(const uint8_t* block, uint8_t* codes) { native::unpack_nibbles<VALUES>(block + 2, codes); }
};

}  // namespace

const native::Codec native::Q4_0 = native::codec_of<Format>("q4_0");
