// ggml's Q5_1: {fp16 d, m; 32 fifth bits; byte j: low bits of value j | of value j + 16 << 4}; value = d * code + m.
#include "../format.h"
#include "fives.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 32, BYTES = 24, HEAD = 4, BITS = 5, GROUP = 32, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    static void unpack(const uint8_t* block, uint8_t* codes) { unpack_fives(block + 8, block + 4, codes); }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
        std::memcpy(heads + 32 + 2 * column, block + 2, 2);
    }
    static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        *scales = load_halves(heads), *mins = load_halves(heads + 32);
    }
};

}  // namespace

const native::Codec native::Q5_1 = native::codec_of<Format>("q5_1");
