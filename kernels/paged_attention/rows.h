// Caches that lie in rows: a tile's keys and values to panels.
#pragma once

#include "plan.h"

#include "../native/multiply_add.h"

#include <type_traits>

namespace native {

constexpr int64_t AHEAD = 64;    // positions from the one that is packed to the one that is fetched
constexpr int64_t PADDING = 32;  // values between rows in memory, lest a column's rows fall into few sets of the cache
constexpr int64_t VALUE_PANEL = 16 * TILE + PADDING;
template <typename C>
constexpr int64_t PER_ELEMENT = std::is_same_v<C, Packed> ? 2 : 1;  // values

// The transpose of 16 rows of 16 values.
#if defined(__AVX512F__)
inline void transpose(
    u16x (&rows)[16]) {  // pairs, fours, then quarters of registers; instructions that overwrite no operand
    __m512i r[16], t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        rows[i] = (u16x)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = (u16x)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#else
inline void transpose(u16x (&rows)[16]) {  // four times the perfect shuffle of the rows' first half with their second
    for (int round = 0; round < 4; ++round) {
        u16x next[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            next[2 * i] =
                __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                      29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
}
#endif

// A row of `dim` cached values as operands, from value `at` on: 16 floats or 32 bf16; 0 behind the row's end.
template <typename O, typename C>
inline u16x operands(const C* row, int64_t at, int64_t dim, float factor = 1) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<C, Packed> && std::is_same_v<O, bf16>) {  // pairs are 16 values apart, as rotated ones
        const u16x bytes = expand(row + at / 2);
        return decode4_bf16((__m512i)(bytes | bytes << 12));
    }
#endif
    if constexpr (std::is_same_v<C, int8_t>) {
        if constexpr (std::is_same_v<O, float>) return (u16x)(load_from(row, at, dim) * factor);
        h16 pairs{};
        if (dim - at >= 32)
            std::memcpy(&pairs, row + at, 32);
        else
            std::memcpy(&pairs, row + at, dim - at);
        const i16x both = __builtin_convertvector(pairs, i16x);
        const u16x even = (u16x)(__builtin_convertvector(both << 24 >> 24, v16) * factor);
        const u16x odd = (u16x)(__builtin_convertvector(both << 16 >> 24, v16) * factor);
        return (even + 0x8000u) >> 16 | ((odd + 0x8000u) & 0xffff0000u);  // rounded; exact where the factor is 1
    }
    if constexpr (!std::is_same_v<C, O>) return (u16x)load_from(row, at, dim);
    u16x x{};
    if (constexpr int64_t all = 64 / sizeof(C); dim - at >= all)
        std::memcpy(&x, row + at, 64);
    else
        std::memcpy(&x, row + at, (dim - at) * sizeof(C));
    return x;
}

// Where the rows of positions `begin` to `count` of those from `start` on lie; nullptr before and behind.
template <typename C>
inline void locate(const Cache<C>& cache, BlockTable table, int64_t block_size, int64_t kv_head, int64_t start,
                   int64_t begin, int64_t count, const C** rows) {
    const C* base = cache.data + kv_head * cache.head_stride;
    int64_t block = (start + begin) / block_size, slot = (start + begin) % block_size;
    for (int64_t j = 0; j < begin; ++j) rows[j] = nullptr;
    for (int64_t j = begin; j < count;) {
        const C* row = base + table[block++] * cache.block_stride;
        for (; slot < block_size && j < count; ++slot) rows[j++] = row + slot * cache.slot_stride;
        slot = 0;
    }
    for (int64_t j = count; j < TILE + AHEAD; ++j) rows[j] = nullptr;
}

// Blocks lie scattered, which defeats the hardware's own fetching ahead.
template <typename C>
inline void fetch(const C* const* rows, int64_t j, int64_t at) {
    if (rows[j + AHEAD]) __builtin_prefetch(rows[j + AHEAD] + at / PER_ELEMENT<C>);
}

// Values `from` to `to` of the keys of 16 * n positions -> panels [positions / 16][size / W][16][W], from `at` of a
// panel's `size` on, and filled up with zeros to 16 W. Those of int8 are multiplied with their position's factor.
template <typename O, typename C>
inline void pack_keys(const C* const* rows, int64_t padded, int64_t from, int64_t to, const float* factors, O* panels,
                      int64_t at, int64_t size) {
    constexpr int64_t step = 16 * GROUP<O>;
    for (int64_t j = 0; j < padded; j += 16) {
        const bool whole = std::is_same_v<C, O> && rows[j] && rows[j + 15] && (to - from) % step == 0,
                   ahead = rows[j + AHEAD + 15];
        for (int64_t d = from; d < to; d += step) {
            u16x x[16];
            if (ahead)
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) __builtin_prefetch(rows[j + AHEAD + i] + d / PER_ELEMENT<C>);
            if (whole) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) x[i] = dwords(rows[j + i] + d);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    x[i] = rows[j + i] ? operands<O>(rows[j + i], d, to, factors ? factors[j + i] : 1.0f) : u16x{};
            }
            transpose(x);
            std::memcpy(panels + j * size + (at + d - from) * 16, x, sizeof x);
        }
    }
}

// Values of positions -> panels [dim / 16][TILE / W][16][W], VALUE_PANEL values apart.
template <typename C>
inline void pack_values(const C* const* rows, int64_t padded, int64_t dim, float* panels) {
    for (int64_t j = 0; j < padded; ++j) {
        for (int64_t d = 0; d < dim; d += 16) {
            fetch(rows, j, d);
            store(panels + d / 16 * VALUE_PANEL + j * 16, rows[j] ? load_from(rows[j], d, dim) : v16{});
        }
    }
}
inline void pack_values(const int8_t* const* rows, int64_t padded, int64_t dim, bf16* panels) {
    for (int64_t j = 0; j < padded; j += 2) {
        for (int64_t d = 0; d < dim; d += LANES) {
            fetch(rows, j + d / LANES % 2, d);
            const u16x even =
                rows[j] ? (u16x)load_from(rows[j], d, dim) : u16x{};  // exact in bf16: the lower half is 0
            const u16x odd = rows[j + 1] ? (u16x)load_from(rows[j + 1], d, dim) : u16x{};
            const u16x pairs = even >> 16 | odd;
            std::memcpy(panels + d / 16 * VALUE_PANEL + j * 16, &pairs, sizeof pairs);
        }
    }
}
typedef uint16_t h32 __attribute__((vector_size(64)));
inline void interleave(h32 even, h32 odd, bf16* low, bf16* high) {
    const h32 first = __builtin_shufflevector(even, odd, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40,
                                              9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
    const h32 second = __builtin_shufflevector(even, odd, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23,
                                               55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
    std::memcpy(low, &first, sizeof first);
    if (high) std::memcpy(high, &second, sizeof second);
}
inline void pack_values(const bf16* const* rows, int64_t padded, int64_t dim, bf16* panels) {
    for (int64_t j = 0; j < padded; j += 2) {
        const bool one = rows[j], other = rows[j + 1], ahead = rows[j + AHEAD + 1];
        int64_t d = 0;
        for (; d + 32 <= dim; d += 32) {
            if (ahead) {
                __builtin_prefetch(rows[j + AHEAD] + d);
                __builtin_prefetch(rows[j + AHEAD + 1] + d);
            }
            h32 even{}, odd{};
            if (one) std::memcpy(&even, rows[j] + d, 64);
            if (other) std::memcpy(&odd, rows[j + 1] + d, 64);
            interleave(even, odd, panels + d / 16 * VALUE_PANEL + j * 16, panels + (d / 16 + 1) * VALUE_PANEL + j * 16);
        }
        if (d < dim) {
            h32 even{}, odd{};
            if (one) std::memcpy(&even, rows[j] + d, (dim - d) * sizeof(bf16));
            if (other) std::memcpy(&odd, rows[j + 1] + d, (dim - d) * sizeof(bf16));
            interleave(even, odd, panels + d / 16 * VALUE_PANEL + j * 16,
                       dim - d > 16 ? panels + (d / 16 + 1) * VALUE_PANEL + j * 16 : nullptr);
        }
    }
}

#if defined(__AVX512BF16__)
inline void pack_values(const Packed* const* rows, int64_t padded, int64_t dim, bf16* panels) {
    const auto codes = [](const Packed* row, int64_t d) { return row ? expand(row + d / 2) : u16x{}; };
    for (int64_t j = 0; j < padded; j += 2) {
        for (int64_t d = 0; d < dim; d += 32) {
            fetch(rows, j + d / 32 % 2, d);
            const u16x both = codes(rows[j], d) | codes(rows[j + 1], d) << 16;
            u16x low = decode4_bf16((__m512i)both), high = decode4_bf16((__m512i)(both >> 4));
            if (!rows[j]) low &= 0xffff0000u, high &= 0xffff0000u;
            if (!rows[j + 1]) low &= 0xffffu, high &= 0xffffu;
            std::memcpy(panels + d / 16 * VALUE_PANEL + j * 16, &low, sizeof low);
            std::memcpy(panels + (d / 16 + 1) * VALUE_PANEL + j * 16, &high, sizeof high);
        }
    }
}
#endif

}  // namespace native
