// ggml's Q4_0: {fp16 d; byte j: value j | value j + 16 << 4}; value = d * (code - 8).
#include "../format.h"

namespace {

struct Format {
    static constexpr int VALUES = 32, BYTES = 18, HEAD = 2, BITS = 4, GROUP = 32, OFFSET = 8;
    static constexpr bool HAS_MIN = false;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int j = 0; j < 16; ++j) codes[j] = block[2 + j] & 15, codes[16 + j] = block[2 + j] >> 4;
    }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
    }
    static void scales(const uint8_t* heads, native::v16* scales, native::v16*) {
        *scales = native::load_halves(heads);
    }
};

}  // namespace

const native::Codec native::Q4_0 = native::codec_of<Format>("q4_0");
