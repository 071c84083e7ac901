// ggml's Q8_0: {fp16 d; int8 values}; value = d * code, packed as code + 128.
#include "scales.h"

namespace {

struct Format : native::Scale16 {
    static constexpr int VALUES = 32, BYTES = 34, BITS = 8, GROUP = 32, OFFSET = 128;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int j = 0; j < 32; ++j) codes[j] = block[2 + j] ^ 128;
    }
};

}  // namespace

const native::Codec native::Q8_0 = native::codec_of<Format>("q8_0");
