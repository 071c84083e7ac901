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
    int8_t* values;
    RowGroup* groups;
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

// 32 numbers within int8.
inline __m256i narrow(i16x first, i16x second) {
#if defined(__AVX512F__)
    return _mm256_set_m128i(_mm512_cvtepi32_epi8((__m512i)second), _mm512_cvtepi32_epi8((__m512i)first));
#else
    const b16 half[2] = {__builtin_convertvector(first, b16), __builtin_convertvector(second, b16)};
    return _mm256_set_m128i((__m128i)half[1], (__m128i)half[0]);
#endif
}

// The largest of 16 numbers.
inline int32_t largest(i16x x) {
    __m256i half[2];
    std::memcpy(half, &x, sizeof half);
    const __m256i eight = _mm256_max_epi32(half[0], half[1]);
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
}

// Sums over 32 numbers of 8 bits: of the first 16 in elements 0 to 3, of the others in 4 to 7, to be added up.
inline __m256i partial_sums(__m256i bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
}

// A group of inputs, of which a row has `count`, to int8; the largest becomes 127 or -127. A group that is not finite
// gets a NaN scale.
template <int GROUP, typename T>
inline RowGroup quantize_group(const T* x, int64_t count, const RowKind& kind, int8_t* out) {
    v16 values[GROUP / LANES];
    i16x bits{};  // of absolute values: floats are in the order of these
    for (int i = 0; i < GROUP / LANES; ++i) {
        values[i] = count == GROUP ? load(x + i * LANES) : i * LANES < count ? load_from(x, i * LANES, count) : v16{};
        const i16x own = (i16x)values[i] & 0x7fffffff;
        bits = own > bits ? own : bits;
    }
    const int32_t most_bits = largest(bits);
    float most;
    std::memcpy(&most, &most_bits, sizeof most);
    const v16 inverse = splat(most > 1e-30f ? 127.0f / most : 0.0f);
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < GROUP / LANES; i += 2) {
        const __m256i bytes = narrow(rounded(values[i] * inverse), rounded(values[i + 1] * inverse));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * LANES), bytes);
        sums = _mm256_add_epi32(sums, partial_sums(bytes));
    }
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const int32_t first = _mm256_extract_epi32(sums, 0), second = _mm256_extract_epi32(sums, 4), all = first + second;
    const float scale = most / 127.0f + most * 0.0f;
    const auto start = [&](int32_t part) { return BIAS_BITS - int32_t(kind.offset) * part; };
    return {scale, scale * float(all), {start(kind.is_halved ? first : all), start(second)}};
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
        const auto put_groups = [&](auto size_of_group) {
            constexpr int GROUP = size_of_group;
            for (int64_t g = 0; g < K / GROUP; ++g) {
                const int64_t at = g * to.num_rows + in_tile;
                const int64_t count = std::clamp<int64_t>(size - g * GROUP, 0, GROUP);
                to.groups[at] = quantize_group<GROUP>(x + g * GROUP, count, kind, to.values + at * GROUP);
            }
        };
        group == 32   ? put_groups(std::integral_constant<int, 32>())
        : group == 64 ? put_groups(std::integral_constant<int, 64>())
                      : put_groups(std::integral_constant<int, 128>());
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
