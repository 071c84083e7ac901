// A weight in blocks, packed for products: panels (codec.h), and pairs of them with the rows that they are multiplied
// with.
#pragma once

#include "../native/binding.h"
#include "../native/memory.h"
#include "../native/panel_pairs.h"
#include "codec.h"

#include <array>

namespace native {

// Of [out_size, in_size], padded with zeros to whole panels.
struct PackedBlocks {
    const Codec* codec;
    bool is_dynamic;  // rows are made int8; else they stay in floats
    int64_t out_size, in_size, num_blocks, panel_size;
    std::shared_ptr<uint8_t> panels;

    PackedBlocks(Tensor rows_OB, const char* format, int64_t num_in, bool dynamic)
        : codec(find_codec(format)), is_dynamic(dynamic), in_size(num_in) {
        check_value(codec, "there is no such format of blocks");
        check_value(in_size > 0, "in_size must be positive");
        check_value(!is_dynamic || codec->multiply, "the format's products take rows in floats only");
        num_blocks = (in_size + codec->values - 1) / codec->values;
        const auto rows = rows_OB.view<const uint8_t>("rows_OB", {ANY, num_blocks * codec->bytes});
        out_size = rows.shape[0];
        panel_size = codec->panel_size(num_blocks);
        panels = weights<uint8_t>(num_panels() * panel_size);
        launch_uncaptured("packing a weight", [&] { fill(rows); });
    }

    // Whether products with both want the same rows.
    bool shares_rows(const PackedBlocks& other) const {
        return is_dynamic == other.is_dynamic && (!is_dynamic || codec->rows == other.codec->rows);
    }
    int64_t num_panels() const { return (out_size + PANEL - 1) / PANEL; }
    int64_t num_pairs() const { return (num_panels() + 1) / 2; }
    BlockPanel panel(int64_t i) const {
        const uint8_t* const heads = panels.get() + i * panel_size;
        return {codec, heads, heads + codec->heads_size(num_blocks), num_blocks};
    }

 private:
    void fill(const View<const uint8_t, 2>& rows) {
        static const std::vector<uint8_t> zeros(1024);  // a block of zeros, in every format
        parallel_spans(num_panels(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                uint8_t* const heads = panels.get() + i * panel_size;
                uint8_t* const codes = heads + codec->heads_size(num_blocks);
                for (int64_t b = 0; b < num_blocks; ++b) {
                    const uint8_t* blocks[PANEL];
                    for (int64_t n = 0; n < PANEL; ++n) {
                        const int64_t row = i * PANEL + n;
                        blocks[n] = row < out_size ? rows.row(row) + b * codec->bytes : zeros.data();
                    }
                    codec->pack(blocks, heads + b * PANEL * codec->head,
                                codes + b * PANEL * (codec->bytes - codec->head));
                }
            }
        });
    }
};

// Two panels, or one, with rows made int8.
struct BlockPair {
    typedef float Sum;
    static constexpr bool IS_GROUPED = true;
    const GroupedRows* rows;
    Span span;
    int64_t num_rows;
    BlockPanel panels[2];
    int64_t num_panels;

    // The panels as they are packed or, for many rows, unpacked in cache.
    std::array<BlockPanel, 2> unpacked() const {
        std::array<BlockPanel, 2> own{panels[0], panels[1]};
        int64_t sizes[2] = {};
        for (int64_t p = 0; num_rows >= MANY_ROWS && p < num_panels; ++p)
            if (const Codec* const plain = panels[p].codec->plain) {
                const int64_t num_blocks = panels[p].num_blocks * panels[p].codec->values / plain->values;
                sizes[p] = HAS_TILES ? plain->panel_size(num_blocks) : plain->heads_size(num_blocks);
            }
        uint8_t* const to = reinterpret_cast<uint8_t*>(scratch(sizes[0] + sizes[1]));
        for (int64_t p = 0; p < num_panels; ++p)
            if (sizes[p]) own[p] = panels[p].codec->unpack(panels[p], *panels[p].codec->plain, to + p * sizes[0]);
        return own;
    }

    void multiply(const std::array<BlockPanel, 2>& own, int64_t row, int64_t M, float* sums,
                  const BlockPair* next) const {
        const bool together = num_panels == 1 || own[0].codec == own[1].codec;
        const int64_t count = together ? num_panels : 1;
        for (int64_t m = 0; m < M; m += TILE_ROWS) {
            std::array<Fetch, 2> fetch;
            for (int64_t p = 0; next && !m && p < next->num_panels; ++p) fetch[p] = next->panels[p].whole();
            for (int64_t p = 0; p < num_panels; p += count)
                own[p].codec->multiply(own.data() + p, count, rows->tile(span, row + m, own[p].codec->rows.group),
                                       std::min(TILE_ROWS, M - m), sums + m * BLOCK + p * PANEL, fetch.data() + p);
        }
    }
};

// Two panels, or one, made floats for rows in floats.
template <typename A>
struct WidePair {
    typedef float Sum;
    static constexpr bool IS_GROUPED = false;
    Matrix<const A> rows;
    int64_t num_rows;
    BlockPanel panels[2];
    int64_t num_panels, K;

    Matrix<const A> unpacked() const {
        int64_t most = 0;
        for (int64_t p = 0; p < num_panels; ++p)
            most = std::max(most, panels[p].num_blocks * panels[p].codec->values * PANEL);
        A* const copy = reinterpret_cast<A*>(scratch(2 * most * sizeof(A)));
        for (int64_t p = 0; p < num_panels; ++p)
            if constexpr (sizeof(A) == 2)
                panels[p].codec->widen_bf16(panels[p], copy + p * most);
            else
                panels[p].codec->widen_float(panels[p], copy + p * most);
        return {copy, most};
    }
    void multiply(Matrix<const A> unpacked, int64_t row, int64_t M, float* sums, const WidePair* next) const {
        const char* pieces[2] = {};
        Ahead ahead{};
        if (next) {
            for (int64_t p = 0; p < next->num_panels; ++p)
                pieces[p] = reinterpret_cast<const char*>(next->panels[p].heads);
            ahead = {pieces, next->num_panels, next->panels[0].codec->panel_size(next->panels[0].num_blocks)};
        }
        product<false, A>(rows.from(row), M, unpacked, num_panels * PANEL, {sums, BLOCK}, K, ahead);
    }
};

// Pair i of a weight's panels.
inline BlockPair pair_of(const GroupedRows& rows, const Span& span, const PackedBlocks& weight, int64_t i) {
    const int64_t num = std::min<int64_t>(2, weight.num_panels() - 2 * i);
    return {&rows, span, span.count, {weight.panel(2 * i), weight.panel(2 * i + num - 1)}, num};
}
template <typename A>
WidePair<A> pair_of(Matrix<const A> rows, int64_t num_rows, const PackedBlocks& weight, int64_t i) {
    const int64_t num = std::min<int64_t>(2, weight.num_panels() - 2 * i);
    return {rows, num_rows, {weight.panel(2 * i), weight.panel(2 * i + num - 1)}, num, padded<A>(weight.in_size)};
}

}  // namespace native
