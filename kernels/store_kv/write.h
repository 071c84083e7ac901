// A row of a paged cache. Contract: kernels/store_kv/__init__.py.
#pragma once

#include "packed.h"

namespace native {

// A row of a cache; of int8, as multiples of a scale that brings its largest value to 127.
template <typename T>
inline void write(const T* x, int64_t dim, T* row, float*) {
    std::memcpy(row, x, dim * sizeof(T));
}
template <typename T, typename S>
inline void write(const T* x, int64_t dim, int8_t* row, S* scale) {
    v16 top{};
    for (int64_t i = 0; i < dim; i += LANES) {
        const v16 value = load_from(x, i, dim);
        top = max(top, max(value, -value));
    }
    store1(scale, std::max(max(top), LEAST_SCALE) / 127.0f);
    for (int64_t i = 0; i < dim; i += LANES) store_to(row, i, dim, load_from(x, i, dim) / load1(scale));
}

// Codes of a row, rotated, and their scale; `encode` is one of packed.h. Needs memory for twice `dim` floats.
template <typename T, typename Encode>
inline const uint8_t* encode_row(const T* x, int64_t dim, const Encode& encode, float* memory, bf16* scale) {
    uint8_t* const codes = reinterpret_cast<uint8_t*>(memory + dim);
    for (int64_t i = 0; i < dim; i += LANES) store(memory + i, load(x + i));
    rotate_packed(memory, dim);
    *scale = encode(memory, dim, codes);
    std::memset(codes + dim, 0, round_up(dim, 32) - dim);
    return codes;
}

// A row in 4 bits.
inline void write_codes(const uint8_t* codes, int64_t dim, Packed* row) {
    for (int64_t i = 0; i < dim; i += 32)
        for (int64_t j = 0; j < 16; ++j) row[i / 2 + j].bits = codes[i + j] | uint8_t(codes[i + 16 + j] << 4);
}

}  // namespace native
