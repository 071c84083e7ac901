// FP8: {fp32 d; 128 values in e4m3}; value = d * e4m3, d < 128. Codes of NaN count as 480.
#include "../format.h"

namespace {

using namespace native;

struct Format {
    static constexpr int VALUES = 128, BYTES = 132, HEAD = 4, BITS = 8, GROUP = 128;
    static constexpr bool HAS_MIN = false;

    static void unpack(const uint8_t* block, uint8_t* codes) { std::memcpy(codes, block + 4, 128); }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        float scale;
        std::memcpy(&scale, block, 4);
        scale *= 0x1p120f;
        std::memcpy(heads + 4 * column, &scale, 4);
    }
    static void scales(const uint8_t* heads, v16* scales, v16*) {
        *scales = load(reinterpret_cast<const float*>(heads));
    }

    // Sign, exponent and fraction go to where fp32 has them. Its exponent is 120 greater, which is in the scales.
    static std::array<v16, 4> values(u16x codes) {
        std::array<v16, 4> values;
        for (int i = 0; i < 4; ++i) values[i] = (v16)(((i16x)(codes << (24 - 8 * i)) >> 4) & int32_t(0x87f00000));
        return values;
    }
};

}  // namespace

const native::Codec native::FP8_128 = native::codec_of<Format>("fp8_128");
