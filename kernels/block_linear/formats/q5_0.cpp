// ggml's Q5_0: {fp16 d; 32 fifth bits; byte j: low bits of value j | of value j + 16 << 4}; value = d * (code - 16).
#include "../format.h"
#include "fives.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 32, BYTES = 22, HEAD = 2, BITS = 5, GROUP = 32, OFFSET = 16;
    static constexpr bool HAS_MIN = false;

    static void unpack(const uint8_t* block, uint8_t* codes) { unpack_fives(block + 6, block + 2, codes); }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
    }
    static void scales(const uint8_t* heads, v16* scales, v16*) { *scales = load_halves(heads); }
};

}  // namespace

const native::Codec native::Q5_0 = native::codec_of<Format>("q5_0");
