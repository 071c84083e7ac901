// Int4 with a zero point: {fp16 d; u8 zero; byte j: value j | value j + half of them << 4}; value = d * (code - zero).
// Groups of 32, 64 or 128 inputs.
#include "../format.h"
#include "low_bits.h"

namespace {

using namespace native;

template <int SIZE>
struct Format {
    static constexpr int VALUES = SIZE, BYTES = 3 + SIZE / 2, HEAD = 3, BITS = 4, GROUP = SIZE, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    static void unpack(const uint8_t* block, uint8_t* codes) { unpack_nibbles<SIZE>(block + 3, codes); }
    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
        heads[32 + column] = block[2];
    }
    static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        typedef uint8_t Bytes __attribute__((vector_size(16)));
        Bytes zeros;
        std::memcpy(&zeros, heads + 32, sizeof zeros);
        *scales = load_halves(heads), *mins = -*scales * __builtin_convertvector(zeros, v16);
    }
};

}  // namespace

const native::Codec native::INT4_32 = native::codec_of<Format<32>>("int4_32");
const native::Codec native::INT4_64 = native::codec_of<Format<64>>("int4_64");
const native::Codec native::INT4_128 = native::codec_of<Format<128>>("int4_128");
