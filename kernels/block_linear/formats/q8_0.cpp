// ggml's Q8_0: {fp16 d; int8 values}; value = d * code, packed as code + 128.
#include "../format.h"

namespace {

struct Format {
    static constexpr int VALUES = 32, BYTES = 34, HEAD = 2, BITS = 8, GROUP = 32, OFFSET = 128;
    static constexpr bool HAS_MIN = false;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int j = 0; j < 32; ++j) codes[j] = block[2 + j] ^ 128;
    }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
    }
    static void scales(const uint8_t* heads, native::v16* scales, native::v16*) {
        *scales = native::load_halves(heads);
    }
};

}  // namespace

const native::Codec native::Q8_0 = native::codec_of<Format>("q8_0");
