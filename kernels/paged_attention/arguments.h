// What a call of the attention kernels is given.
#pragma once

#include "../native/panels.h"

namespace native {

constexpr int64_t TILE = 256;  // positions computed at a time

// Rows of `dim` values of the heads of tokens.
template <typename T>
struct Heads {
    const T* data;
    int64_t token_stride, head_stride, dim;
};

// Rows of `dim` cached values: of the slots of blocks, for each key head. Those of int8 have scales: a row's values up
// to `first` are multiples of its first scale, the others of its last.
template <typename T>
struct Cache {
    const T* data;
    int64_t block_stride, head_stride, slot_stride, dim;
    int64_t first = dim;
    const float* scales = nullptr;  // [blocks, key heads, slots, num_scales]
    int64_t num_scales = 0;
};

struct Task {
    int32_t sequence;  // row of the block tables
    int32_t first_token, num_tokens;
    int32_t position;    // of the first token
    int32_t begin, end;  // positions to attend to; a token sees none behind its own
    int32_t partial;  // where an incomplete result of the first token goes, others after it; -1: results are complete
};

// A token's row of partial results, to be made one.
struct Merge {
    int32_t token, first_partial, num_partials, step;  // from one to the next
};

template <typename T, typename C = T>
struct Attention {
    Heads<T> q;
    Cache<C> keys, values;
    T* out;                       // [tokens, num_heads, values.dim]
    const int32_t* block_tables;  // [sequences, table_stride]
    int64_t table_stride, block_size, num_heads, num_kv_heads;
    float scale;
    int64_t span;
    bool in_panels = false;  // how keys and values lie (layout.h)
};

}  // namespace native
