// ggml's Q6_K: {128 bytes with 4 bits of each code; 64 with 2 more; 16 int8 scales; fp16 d}; value = d * scale *
// (code - 32), each scale for 16 values.
#include "../format.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 256, BYTES = 210, HEAD = 18, BITS = 6, GROUP = 16, OFFSET = 32;
    static constexpr bool HAS_MIN = false;

    static void unpack(const uint8_t* block, uint8_t* codes) {
        for (int half = 0; half < 2; ++half, codes += 128) {
            const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
            for (int j = 0; j < 32; ++j) {
                codes[j] = uint8_t((low[j] & 15) | (high[j] & 3) << 4);
                codes[32 + j] = uint8_t((low[32 + j] & 15) | (high[j] >> 2 & 3) << 4);
                codes[64 + j] = uint8_t(low[j] >> 4 | (high[j] >> 4 & 3) << 4);
                codes[96 + j] = uint8_t(low[32 + j] >> 4 | high[j] >> 6 << 4);
            }
        }
    }
    // 16 d, then 16 columns' scales of each group.
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block + 208, 2);
        for (int group = 0; group < 16; ++group) heads[32 + 16 * group + column] = block[192 + group];
    }
    __attribute__((always_inline)) static void scales(const uint8_t* heads, v16* scales, v16*) {
        const v16 scale = load_halves(heads);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) scales[i] = load(reinterpret_cast<const int8_t*>(heads + 32 + 16 * i)) * scale;
    }
};

}  // namespace

const native::Codec native::Q6_K = native::codec_of<Format>("q6_k");
