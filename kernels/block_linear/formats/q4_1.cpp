// ggml's Q4_1: {fp16 d, m; byte j: value j | value j + 16 << 4}; value = d * code + m.
#include "../format.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 32, BYTES = 20, HEAD = 4, BITS = 4, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int j = 0; j < 16; ++j) codes[j] = block[4 + j] & 15, codes[16 + j] = block[4 + j] >> 4;
    }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
        std::memcpy(heads + 32 + 2 * column, block + 2, 2);
    }
    static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        *scales = load_halves(heads), *mins = load_halves(heads + 32);
    }
};

}  // namespace

const native::Codec native::Q4_1 = native::codec_of<Format>("q4_1");
