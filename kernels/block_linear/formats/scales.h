// The heads of ggml's blocks of 32: {fp16 d} or {fp16 d, m}. Of 16 columns: 16 d, then 16 m.
#pragma once

#include "../format.h"

namespace native {

struct Scale16 {
    static constexpr int HEAD = 2;
    static constexpr bool HAS_MIN = false;

    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
    }
    static void scales(const uint8_t* heads, v16* scales, v16*) { *scales = load_halves(heads); }
};

struct ScaleAndMin16 {
    static constexpr int HEAD = 4;
    static constexpr bool HAS_MIN = true;

    static void pack_head(const uint8_t* block, int column, uint8_t* heads) {
        std::memcpy(heads + 2 * column, block, 2);
        std::memcpy(heads + 32 + 2 * column, block + 2, 2);
    }
    static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        *scales = load_halves(heads), *mins = load_halves(heads + 32);
    }
};

}  // namespace native
