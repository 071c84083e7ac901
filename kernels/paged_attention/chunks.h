// Caches that lie in panels (layout.h), by chunks of 16 positions: computed on where they lie, or copied.
#pragma once

#include "packed_panels.h"
#include "rows.h"

#include "../native/matmul.h"

namespace native {

constexpr int64_t FEW_ROWS = 8;  // up to so many rows of a token are computed where keys and values lie
// Fetched into the second cache: the first has too few buffers for lines under way.
constexpr int64_t CHUNKS_AHEAD = 8;

// A row of a panel, as operands: at `line` lie 16 groups.
template <typename O, typename C>
inline u16x operands(const C* line) {
    if constexpr (std::is_same_v<C, O>) return dwords(line);
    return operands<O>(line, 0, 16 * GROUP<O>);
}

// The keys of a chunk from dimension d on, a multiple of W, as operands; the values of its slots from `slot` on, W of
// them, in 16 dimensions from d on; and fetching them. (Packed ones: packed_panels.h)
template <typename O, typename C>
inline u16x key_operands(const C* chunk, int64_t d, int64_t) {
    return operands<O>(chunk + d * CHUNK);
}
template <typename O, typename C>
inline u16x value_operands(const C* chunk, int64_t slot, int64_t d, int64_t dim) {
    return operands<O>(chunk + slot * dim + d * GROUP<O>);
}
template <typename O, typename C>
inline void fetch_keys(const C* chunk, int64_t d, int64_t) {
    __builtin_prefetch(chunk + d * CHUNK, 0, 2);
}
template <typename O, typename C>
inline void fetch_values(const C* chunk, int64_t slot, int64_t d, int64_t dim) {
    __builtin_prefetch(chunk + slot * dim + d * GROUP<O>, 0, 2);
}

// Values of the last of `count` positions: what lies behind it counts as 0 (it may be NaN).
template <typename O>
inline u16x last_operands(u16x x, int64_t count) {
    return count % GROUP<O> ? x & 0xffffu : x;
}

// The chunks of `count` positions from the start of one on, in the order in which they are read: keys, values, and what
// comes next, null where nothing does.
template <typename C>
struct Chunks {
    const C* at[2 * TILE / CHUNK + CHUNKS_AHEAD];
    int64_t num;

    template <typename T>
    Chunks(const Attention<T, C>& attention, const Task& task, int64_t kv_head, bool another_head, int64_t start,
           int64_t count)
        : num((count + CHUNK - 1) / CHUNK) {
        const BlockTable table = attention.plan.table(task);
        const auto of = [&](const Cache<C>& cache, int64_t head, int64_t position) {
            const int64_t block = table[position / attention.block_size];
            return cache.data + block * cache.block_stride + head * cache.head_stride +
                   position % attention.block_size * cache.slot_stride;
        };
        for (int64_t i = 0; i < num; ++i) {
            at[i] = of(attention.keys, kv_head, start + i * CHUNK);
            at[num + i] = of(attention.values, kv_head, start + i * CHUNK);
        }
        const bool is_last = start + count == task.end;
        const int64_t next = is_last ? task.begin / CHUNK * CHUNK : start + count, head = kv_head + is_last;
        for (int64_t i = 0; i < CHUNKS_AHEAD; ++i)
            at[2 * num + i] = (head == kv_head || another_head) && next + i * CHUNK < task.end
                                  ? of(attention.keys, head, next + i * CHUNK)
                                  : nullptr;
    }

    const C* const* keys() const { return at; }
    const C* const* values() const { return at + num; }
};

// M rows' scores of the positions of chunk i and the next one, if there is one; if not, twice those of chunk i.
template <int M, typename O, typename C>
inline void score_chunks(Matrix<const O> q, const Chunks<C>& chunks, int64_t i, int64_t dim, Matrix<float> scores) {
    const int64_t second = std::min(i + 1, chunks.num - 1);
    const C *const left = chunks.keys()[i], *const right = chunks.keys()[second];
    const C *const left_ahead = chunks.keys()[i + CHUNKS_AHEAD], *const right_ahead =
                                                                     chunks.keys()[second + CHUNKS_AHEAD];
    const Matrix<float> to{scores.data + i * CHUNK, scores.stride};
    block<M, 2, false, O>(q, dim / GROUP<O>, to, [=](int64_t g, int p) {
        if (const C* ahead = p ? right_ahead : left_ahead) fetch_keys<O>(ahead, g * GROUP<O>, dim);
        return key_operands<O>(p ? right : left, g * GROUP<O>, dim);
    });
}

// Adds to M rows of `out` the weighted values of `count` positions, in 16 P of their dimensions from `at` on.
template <int M, int P, typename O, typename C>
inline void mix_chunks(Matrix<const O> weights, const Chunks<C>& chunks, int64_t count, int64_t dim, int64_t at,
                       Matrix<float> out) {
    constexpr int64_t W = GROUP<O>;
    const C* const* values = chunks.values();
    const Matrix<float> to{out.data + at, out.stride};
    block<M, P, true, O>(weights, (count + W - 1) / W, to, [=](int64_t g, int p) {
        const int64_t j = g * W, d = at + p * LANES;
        if (const C* ahead = values[j / CHUNK + CHUNKS_AHEAD]) fetch_values<O>(ahead, j % CHUNK, d, dim);
        const u16x own = value_operands<O>(values[j / CHUNK], j % CHUNK, d, dim);
        return j + W > count ? last_operands<O>(own, count) : own;
    });
}

// Both of all chunks and dimensions, for M rows.
template <int M, typename O, typename C>
inline void score(Matrix<const O> q, const Chunks<C>& chunks, int64_t dim, Matrix<float> scores) {
    for (int64_t i = 0; i < chunks.num; i += 2) score_chunks<M>(q, chunks, i, dim, scores);
}
template <int M, typename O, typename C>
inline void mix(Matrix<const O> weights, const Chunks<C>& chunks, int64_t count, int64_t dim, Matrix<float> out) {
#if defined(__AVX512F__)
    constexpr int SUMS = 16;  // that registers hold beside operands
#else
    constexpr int SUMS = 6;
#endif
    constexpr int P = std::max(1, std::min(4, SUMS / M));
    int64_t at = 0;
    for (; at + P * LANES <= dim; at += P * LANES) mix_chunks<M, P>(weights, chunks, count, dim, at, out);
    for (; at < dim; at += LANES) mix_chunks<M, 1>(weights, chunks, count, dim, at, out);
}

// f of M as a constant, 1 to FEW_ROWS.
template <int N = FEW_ROWS, typename F>
inline void with_rows(int64_t M, const F& f) {
    if constexpr (N > 0) {
        if (M == N) return f(std::integral_constant<int, N>{});
        with_rows<N - 1>(M, f);
    }
}

// Chunks to panels, for products of many rows: keys [positions / 16][size / W][16][W] with zeros from `dim` on,
template <typename O, typename C>
inline void copy_keys(const Chunks<C>& chunks, int64_t dim, int64_t size, O* panels) {
    for (int64_t i = 0; i < chunks.num; ++i, panels += size * CHUNK) {
        for (int64_t d = 0; d < dim; d += GROUP<O>) {
            const u16x x = key_operands<O>(chunks.keys()[i], d, dim);
            std::memcpy(panels + d * CHUNK, &x, sizeof x);
        }
        std::memset(panels + dim * CHUNK, 0, (size - dim) * CHUNK * sizeof(O));
    }
}

// values [dim / 16][TILE / W][16][W], VALUE_PANEL values apart, with zeros from `count` to `padded`.
template <typename O, typename C>
inline void copy_values(const Chunks<C>& chunks, int64_t count, int64_t padded, int64_t dim, O* panels) {
    for (int64_t j = 0; j < padded; j += GROUP<O>)
        for (int64_t d = 0; d < dim; d += LANES) {
            u16x x{};
            if (j < count) {
                x = value_operands<O>(chunks.values()[j / CHUNK], j % CHUNK, d, dim);
                if (j + GROUP<O> > count) x = last_operands<O>(x, count);
            }
            std::memcpy(panels + d / LANES * VALUE_PANEL + j * LANES, &x, sizeof x);
        }
}

}  // namespace native
