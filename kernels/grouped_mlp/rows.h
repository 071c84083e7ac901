// The rows of one call's experts: which token and expert each has, and their values as products take them.
#pragma once

#include "../block_linear/packed_blocks.h"
#include "../native/packed.h"
#include "../native/panel_pairs.h"

#include <vector>

namespace native {

// A row for each pair of token and expert, sorted by expert.
struct SortedRows {
    std::vector<Span> spans;                // of each expert
    std::vector<int64_t> active;            // experts that have rows
    std::vector<int64_t> of_pair;           // [T * K]: the row, or -1 for an expert that is left out
    std::vector<int64_t> token, of_expert;  // of each row; token is -1 for those that only fill up
    std::vector<float> weight;              // the router's
    int64_t total;

    // Without ids, every token goes to expert 0, and without weights as it is. has(expert) is false for those left out.
    template <typename Has>
    void sort(int64_t num_tokens, int64_t top_k, int64_t num_experts, const int64_t* ids, const float* weights,
              const Has& has) {
        const int64_t num_pairs = num_tokens * top_k;
        const auto expert_of = [&](int64_t p) { return ids ? ids[p] : 0; };
        spans.assign(num_experts, {0, 0});
        active.clear();
        for (int64_t p = 0; p < num_pairs; ++p)
            if (has(expert_of(p))) ++spans[expert_of(p)].count;
        total = 0;
        for (int64_t e = 0; e < num_experts; ++e) {
            spans[e].first = total;
            total += round_up(spans[e].count, ROWS);
            if (spans[e].count) active.push_back(e);
        }
        of_pair.resize(num_pairs);
        token.assign(total, -1);
        of_expert.resize(total);
        weight.resize(total);
        next.resize(num_experts);
        for (int64_t e = 0; e < num_experts; ++e) next[e] = spans[e].first;
        for (int64_t p = 0; p < num_pairs; ++p) {
            const int64_t expert = expert_of(p), row = has(expert) ? next[expert]++ : -1;
            of_pair[p] = row;
            if (row < 0) continue;
            token[row] = p / top_k;
            of_expert[row] = expert;
            weight[row] = weights ? weights[p] : 1;
        }
    }

 private:
    std::vector<int64_t> next;
};

// Rows of bf16, padded to whole tiles.
struct FloatRows {
    static constexpr bool IS_FLOAT = true;
    Matrix<const bf16> values;

    Matrix<bf16> make_room(int64_t total, int64_t size) {
        const int64_t K = padded<bf16>(size);
        bf16* const to = memory.room(total * K);
        values = {to, K};
        return {to, K};
    }

 private:
    Scratch<bf16> memory;
};

// Rows of uint8, each on a grid.
struct GridRows {
    static constexpr bool IS_FLOAT = false;
    Matrix<uint8_t> values;
    Grid* grids;

    void make_room(int64_t total, int64_t size) {
        const int64_t K = padded<uint8_t>(size);
        values = {memory.room(total * K), K};
        grids = grid_memory.room(total);
    }

 private:
    Scratch<uint8_t> memory;
    Scratch<Grid> grid_memory;
};

// A row of so many values, as its product with a weight takes it.
template <typename T>
void put_row(const GridRows& rows, const Span&, int64_t row, const T* x, int64_t size, const PackedWeight& weight) {
    rows.grids[row] = quantize_row(x, size, rows.values.stride, rows.values.row(row), weight.grid);
}
template <typename T>
void put_row(const GroupedRows& rows, const Span& span, int64_t row, const T* x, int64_t size,
             const PackedBlocks& weight) {
    rows.put(span, row, x, size, weight.codec->rows);
}

// Pair i of the panels of a weight, with an expert's rows.
inline Pair<bf16> pair_of(const FloatRows& rows, const Span& span, const PackedWeight& weight, int64_t i) {
    const int64_t K = rows.values.stride;
    return {rows.values.from(span.first), span.count, weight.data<bf16>() + 2 * i * K * PANEL, weight.panels_of(i), K};
}
inline Pair<uint8_t> pair_of(const GridRows& rows, const Span& span, const PackedWeight& weight, int64_t i) {
    const int64_t K = rows.values.stride;
    return {{rows.values.row(span.first), K},
            span.count,
            weight.data<uint8_t>() + 2 * i * K * PANEL,
            weight.panels_of(i),
            K};
}

inline WidePair<bf16> pair_of(const FloatRows& rows, const Span& span, const PackedBlocks& weight, int64_t i) {
    return pair_of<bf16>(rows.values.from(span.first), span.count, weight, i);
}

// What sums of products of rows with a weight are worth.
template <typename Rows, typename Weight>
Scaling scaling_of(const Rows& rows, const Weight& weight) {
    if constexpr (std::is_same_v<Rows, GridRows>)
        return {weight.scales.get(), weight.totals.get(), rows.grids};
    else
        return {};
}

}  // namespace native
