// ggml's Q4_1: {fp16 d, m; byte j: value j | value j + 16 << 4}; value = d * code + m.
#include "low_bits.h"
#include "scales.h"

namespace {

struct Format : native::ScaleAndMin16 {
    static constexpr int VALUES = 32, BYTES = 20, BITS = 4, GROUP = 32, OFFSET = 0;

    static void unpack(const uint8_t* block, uint8_t* codes) { native::unpack_nibbles<VALUES>(block + 4, codes); }
};

}  // namespace

const native::Codec native::Q4_1 = native::codec_of<Format>("q4_1");
