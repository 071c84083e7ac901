// The product of blocks of a row with a Hadamard matrix. Contract: kernels/hadamard/__init__.py.
#pragma once

#include "common.h"

#include <utility>

namespace native {

// x with each value's neighbour at a distance D < 16 added, or the value subtracted from it.
template <int D, int... I>
inline v16 add_neighbours(v16 x, std::integer_sequence<int, I...>) {
    constexpr v16 SIGNS = {(I & D ? -1.0f : 1.0f)...};
    return __builtin_shufflevector(x, x, (I ^ D)...) + x * SIGNS;  // rounded once, with a multiply-add or without
}
template <int D>
inline v16 add_neighbours(v16 x) {
    return add_neighbours<D>(x, std::make_integer_sequence<int, LANES>());
}

// A block of N registers, in place.
template <int N>
inline void rotate_registers(v16* x) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        x[i] = add_neighbours<1>(x[i]);
        x[i] = add_neighbours<2>(x[i]);
        x[i] = add_neighbours<4>(x[i]);
        x[i] = add_neighbours<8>(x[i]);
    }
#pragma GCC unroll 4
    for (int distance = 1; distance < N; distance *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
            if (!(i & distance)) {
                const v16 first = x[i], second = x[i + distance];
                x[i] = first + second;
                x[i + distance] = first - second;
            }
}

template <int N, typename T>
inline void rotate_blocks(const T* x, int64_t size, float* out) {
    for (int64_t at = 0; at < size; at += N * LANES) {
        v16 block[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) block[i] = load(x + at + i * LANES);
        rotate_registers<N>(block);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) store(out + at + i * LANES, block[i]);
    }
}

inline bool can_rotate(int64_t size, int64_t block) {
    return block >= 16 && block <= 512 && (block & (block - 1)) == 0 && size % block == 0;
}

// A row and a block of sizes that can_rotate; out may be x.
template <typename T>
inline void rotate_row(const T* x, int64_t size, int64_t block, float* out) {
    switch (block) {
        case 16:
            return rotate_blocks<1>(x, size, out);
        case 32:
            return rotate_blocks<2>(x, size, out);
        case 64:
            return rotate_blocks<4>(x, size, out);
        case 128:
            return rotate_blocks<8>(x, size, out);
    }
    rotate_blocks<16>(x, size, out);
    if (block == 256) return;
    for (int64_t at = 0; at < size; at += 512)
        for (float* half = out + at; half < out + at + 256; half += LANES) {
            const v16 first = load(half), second = load(half + 256);
            store(half, first + second);
            store(half + 256, first - second);
        }
}

}  // namespace native
