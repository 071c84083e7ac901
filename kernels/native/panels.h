// How the operands of a matrix product C = A B lie in memory, and how weights are brought there.
//
// A is row-major. B lies in panels of 16 columns, as AMX, vdpbf16ps and vpdpbusd want it: [N / 16][K /
// GROUP][16][GROUP] where GROUP values make 32 bits: 1 of fp32, 2 of bf16, 4 of int8. A weight [N, K] is B transposed:
// 16 of its rows make a panel; N is padded with zeros to whole panels and K to tiles of 16 groups.
#pragma once

#include "common.h"
#include "memory.h"
#include "pool.h"

#include <algorithm>

namespace native {

// What rows of A are multiplied with, and what their products are summed up in.
template <typename A>
struct Operands {
    typedef A Weight;
    typedef float Sum;
};
template <>
struct Operands<uint8_t> {
    typedef int8_t Weight;
    typedef int32_t Sum;
};
template <typename A>
using Weight = typename Operands<A>::Weight;
template <typename A>
using Sum = typename Operands<A>::Sum;

#if defined(__AVX512BF16__)
typedef bf16 Narrow;  // what attention and head_linear compute products of bf16 from
#else
typedef float Narrow;
#endif
template <typename T>
struct Operand {
    typedef float type;
};
template <>
struct Operand<bf16> {
    typedef Narrow type;
};

constexpr int64_t PANEL = 16;  // columns
template <typename A>
constexpr int64_t GROUP = 4 / sizeof(A);
template <typename A>
constexpr int64_t TILE_K = 16 * GROUP<A>;

template <typename A>
int64_t padded(int64_t K) {
    return round_up(K, TILE_K<A>);
}

// Rows, or panels, that begin `stride` values apart.
template <typename T>
struct Matrix {
    T* data;
    int64_t stride;

    T* row(int64_t i) const { return data + i * stride; }
    Matrix from(int64_t i) const { return {row(i), stride}; }
};

// A weight [N, K] to panels for products with rows of A; B may be narrower than those (int8 that stands for floats).
// `first` is the panel that the first rows go to, `step` the distance to the next one: two weights can be interleaved.
template <typename A, typename B>
void pack(const B* weight, int64_t N, int64_t K, B* out, int64_t first = 0, int64_t step = 1) {
    constexpr int64_t G = GROUP<A>;
    const int64_t size = padded<A>(K) * PANEL, whole = K / G;
    parallel_spans((N + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            B* const to = out + (first + panel * step) * size;
            std::memset(to, 0, size * sizeof(B));
            const int64_t count = std::min(PANEL, N - panel * PANEL);
            for (int64_t n = 0; n < count; ++n) {
                const B* from = weight + (panel * PANEL + n) * K;
                for (int64_t g = 0; g < whole; ++g) std::memcpy(to + (g * PANEL + n) * G, from + g * G, G * sizeof(B));
                std::memcpy(to + (whole * PANEL + n) * G, from + whole * G, (K - whole * G) * sizeof(B));
            }
        }
    });
}

}  // namespace native
