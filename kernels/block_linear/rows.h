// Rows made int8 for products with blocks: symmetric, each group of inputs with a scale of its own.
//
// Rows lie in tiles of 16 or fewer, in the order in which products read them: [groups][rows of the tile][group].
#pragma once

#include "dot.h"

namespace native {

constexpr int64_t TILE_ROWS = 16;

// An expert's rows, or all of a linear layer's: so many from `first` on, which is a multiple of 16.
struct Span {
    int64_t first, count;
};

// How products with a format of blocks want rows.
struct RowKind {
    int64_t group;   // inputs that share a scale
    int64_t offset;  // what the format subtracts of a code
    bool is_halved;  // sums of either half of a group are added up apart

    bool operator==(const RowKind& other) const {
        return group == other.group && offset == other.offset && is_halved == other.is_halved;
    }
};

// A row's group of inputs: x is about scale * x_q.
struct RowGroup {
    float scale, sum;   // sum over x
    int32_t starts[2];  // of the sums of products with codes: -offset times the sum over x_q, as Dot wants it (dot.h);
                        // if they are halved, of either half
};

struct RowTile {
    const int8_t* values;
    const RowGroup* groups;
    int64_t num_rows;
};

// To the nearest whole numbers, halves to even.
inline i16x rounded(v16 x) {
#if defined(__AVX512F__)
    return (i16x)_mm512_cvtps_epi32((__m512)x);
#else
    __m256 half[2];
    std::memcpy(half, &x, sizeof half);
    const __m256i both[2] = {_mm256_cvtps_epi32(half[0]), _mm256_cvtps_epi32(half[1])};
    i16x whole;
    std::memcpy(&whole, both, sizeof whole);
    return whole;
#endif
}

// A group of inputs, of which a row has `count`, to int8; the largest becomes 127 or -127. A group that is not finite
// gets a NaN scale.
template <typename T>
inline RowGroup quantize_group(const T* x, int64_t count, const RowKind& kind, int8_t* out) {
    v16 largest{}, check{};
    for (int64_t i = 0; i < count; i += LANES) {
        const v16 v = load_from(x, i, count);
        largest = max(max(v, -v), largest);
        check += v * 0.0f;
    }
    const float most = max(largest);
    const v16 inverse = splat(most > 1e-30f ? 127.0f / most : 0.0f);
    i16x sums[2]{};
    for (int64_t i = 0; i < kind.group; i += LANES) {
        const i16x q = i < count ? rounded(load_from(x, i, count) * inverse) : i16x{};
        const b16 bytes = __builtin_convertvector(q, b16);
        std::memcpy(out + i, &bytes, sizeof bytes);
        sums[kind.is_halved && 2 * i >= kind.group] += q;
    }
    const float scale = most / 127.0f + sum(check);
    const float first = sum(__builtin_convertvector(sums[0], v16)), second = sum(__builtin_convertvector(sums[1], v16));
    const auto start = [&](float part) { return BIAS_BITS - int32_t(kind.offset) * int32_t(part); };
    return {scale, scale * (first + second), {start(first), start(second)}};
}

// Rows of any number and size, kept from call to call.
class GroupedRows {
 public:
    static constexpr bool IS_FLOAT = false;

    void make_room(int64_t total, int64_t size) {
        K = round_up(size, 256);                                  // whole blocks of every format
        values = value_memory.room(total * K + TILE_ROWS * 128);  // tiles read beyond the last rows
        groups = group_memory.room(total * K / 32 + TILE_ROWS);
    }

    // A row of so many inputs to its place in its span.
    template <typename T>
    void put(const Span& span, int64_t row, const T* x, int64_t size, const RowKind& kind) const {
        const int64_t number = row - span.first, in_tile = number % TILE_ROWS, group = kind.group;
        const RowTile to = tile(span, number - in_tile, group);
        for (int64_t g = 0; g < K / group; ++g) {
            const int64_t at = g * to.num_rows + in_tile;
            const int64_t count = std::clamp<int64_t>(size - g * group, 0, group);
            const_cast<RowGroup*>(to.groups)[at] =
                quantize_group(x + g * group, count, kind, const_cast<int8_t*>(to.values) + at * group);
        }
    }

    // The tile of a span that begins at its row `number`.
    RowTile tile(const Span& span, int64_t number, int64_t group) const {
        const int64_t row = span.first + number;
        return {values + row * K, groups + row * (K / group), std::min(TILE_ROWS, span.count - number)};
    }

 private:
    int64_t K;  // values of a row
    int8_t* values;
    RowGroup* groups;
    Scratch<int8_t> value_memory;
    Scratch<RowGroup> group_memory;
};

}  // namespace native
