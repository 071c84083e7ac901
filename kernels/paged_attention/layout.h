// How keys and values lie in a paged cache.
//
// Where a block has a multiple of 16 slots and a head of 16 values, 16 slots of a head lie in the order in which
// products take them, so that attention computes on them in place (native/panels.h; W values of an operand make 32
// bits):
//
//     keys      [D / W][16][W]            a panel of scores = Q K^T
//     values    [16 / W][D / 16][16][W]   rows of the panels of O = P V
//
// Any other shape lies in rows [slots][D].
#pragma once

#include "../native/panels.h"

namespace native {

constexpr int64_t CHUNK = 16;  // slots

template <typename T>
constexpr int64_t PAIR = GROUP<typename Operand<T>::type>;  // W, for numbers of type T

inline bool lies_in_panels(int64_t block_size, int64_t dim) { return block_size % CHUNK == 0 && dim % LANES == 0; }

// A slot's row of `dim` values into its chunk.
template <int64_t W, typename C>
inline void scatter_key(const C* row, int64_t dim, int64_t slot, C* chunk) {
    for (int64_t d = 0; d < dim; d += W) std::memcpy(chunk + d * CHUNK + slot * W, row + d, W * sizeof(C));
}
template <int64_t W, typename C>
inline void scatter_value(const C* row, int64_t dim, int64_t slot, C* chunk) {
    C* to = chunk + slot / W * W * dim + slot % W;
#if defined(__AVX512BW__)
    if constexpr (W == 2 && sizeof(C) == 2) {  // every other value of a register: another thread may write the rest
        for (int64_t d = 0; d < dim; d += LANES) {
            const __m512i own = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + d)));
            _mm512_mask_storeu_epi16(to + d * W - slot % W, 0x55555555u << slot % W,
                                     _mm512_slli_epi32(own, 16 * (slot % W)));
        }
        return;
    }
#endif
    for (int64_t d = 0; d < dim; ++d) to[d * W] = row[d];
}

}  // namespace native
