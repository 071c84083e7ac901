// What products, embeddings and packing need of a format of blocks (kernels/block_weight.py), whichever it is.
//
// A new format is a file formats/<name>.cpp (format.h says what it must hold) and a name at the end of this one.
#pragma once

#include "rows.h"

#include <cstdint>

namespace native {

struct BlockPanel;

// Memory that a product fetches on its way, by default none.
struct Fetch {
    const char *at = nullptr, *end = nullptr;
    int64_t stride = 64;  // less where it is fetched more slowly: a line that is on its way already costs little

    void next(int64_t count) {
        for (; count > 0 && at < end; --count, at += stride) _mm_prefetch(at, _MM_HINT_T0);
    }

    // What the i-th of n products that follow each other fetches.
    Fetch part(int64_t i, int64_t n) const {
        const int64_t size = end - at;
        return {at + size * i / n, at + size * (i + 1) / n, std::max<int64_t>(stride / n, 1)};
    }
};

struct Codec {
    int64_t values, bytes;       // of a block
    int64_t head;                // bytes of a block that hold its scales
    RowKind rows;                // what its products want
    const char* name = nullptr;  // null for unpacked panels, which have only `multiply` of what follows

    // A block's values.
    void (*decode)(const uint8_t* block, float* out) = nullptr;
    // Blocks of 16 columns to a panel's.
    void (*pack)(const uint8_t* const (&blocks)[16], uint8_t* heads, uint8_t* codes) = nullptr;
    // sums[m][column] of the first M rows of a tile, by one or two panels that are 16 columns apart; rows of sums are
    // BLOCK apart. Fetches what is named for each panel. Null for a format of floats.
    void (*multiply)(const BlockPanel* panels, int64_t num_panels, const RowTile& tile, int64_t M, float* sums,
                     const Fetch* fetch) = nullptr;
    // A panel as products in floats take it.
    void (*widen_bf16)(const BlockPanel& panel, bf16* out) = nullptr;
    void (*widen_float)(const BlockPanel& panel, float* out) = nullptr;
    // The codec of unpacked panels, which products of MANY_ROWS and more take, and a panel to its unpacked one; or
    // null.
    const Codec* plain = nullptr;
    BlockPanel (*unpack)(const BlockPanel& panel, const Codec& plain, uint8_t* out) = nullptr;

    // Bytes of a panel's heads, which come first; of a whole panel.
    int64_t heads_size(int64_t num_blocks) const { return round_up(num_blocks * PANEL * head, 64); }
    int64_t panel_size(int64_t num_blocks) const {
        return heads_size(num_blocks) + num_blocks * PANEL * (bytes - head);
    }
};

// 16 columns of a weight: the scales of all blocks, and the codes of all blocks, which begin at a cache line.
struct BlockPanel {
    const Codec* codec;
    const uint8_t *heads, *codes;
    int64_t num_blocks;

    // All of it, as it is packed.
    Fetch whole() const {
        const char* const first = reinterpret_cast<const char*>(heads);
        return {first, first + codec->panel_size(num_blocks)};
    }
};

const Codec* find_codec(const char* name);  // or null

extern const Codec Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, MXFP4, INT4_32, INT4_64, INT4_128, FP8_128;
constexpr const Codec* CODECS[] = {&Q4_0, &Q4_1,  &Q5_0,    &Q5_1,    &Q8_0,     &Q4_K,   &Q5_K,
                                   &Q6_K, &MXFP4, &INT4_32, &INT4_64, &INT4_128, &FP8_128};

}  // namespace native
