// Attention over cached keys and values in tiles, with an online softmax (Milakov and Gimelshein 2018; Dao et al.
// 2022).
//
// A task is some rows (token, query head) of one sequence that read one key head, over a range of positions. It walks
// the positions in tiles: a tile's keys and values are brought into panels once, then blocks of rows take scores = Q
// K^T, the softmax so far, and O += P V as small matrix products (native/panels.h). Of bf16, P is rounded to bf16; sums
// are fp32. A cache that lies in panels (layout.h) is only copied, and for a decoding sequence's few rows not even
// that: the processor reads each of its values once, where it lies.
//
// A row's result depends on its sequence alone: tiles begin at multiples of TILE, what a row may not see weighs exactly
// 0, and results are made for spans of positions, then put together in their order, be it by the task that computed
// them or from tasks for one span each.
#pragma once

#include "layout.h"

#include "../native/pool.h"
#include "../native/scratch.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace native {

constexpr int64_t TILE = 256;      // positions packed at a time
constexpr int64_t AHEAD = 64;      // positions from the one that is packed to the one that is fetched
constexpr int64_t ROW_BLOCK = 32;  // rows whose scores are held at a time
constexpr int64_t FEW_ROWS = 8;    // up to so many rows of a token are computed where keys and values lie
constexpr int64_t CHUNKS_AHEAD =
    8;  // of 16 positions, fetched into the second cache: the first has too few buffers for lines under way
constexpr int64_t PADDING = 32;  // values between rows in memory, lest a column's rows fall into few sets of the cache
constexpr int64_t VALUE_PANEL = 16 * TILE + PADDING;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

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

// 16 dwords of a row that holds `dim` values, from value `at` on: 16 floats or 32 bf16; 0 behind the row's end.
template <typename C, typename O>
inline u16x dwords(const C* row, int64_t at, int64_t dim, float factor, O) {
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
        return (even + 0x8000u) >> 16 |
               ((odd + 0x8000u) & 0xffff0000u);  // rounded to bf16; exact where the factor is 1
    }
    if constexpr (!std::is_same_v<C, O>) return (u16x)load_from(row, at, dim);
    u16x x{};
    if (constexpr int64_t all = 64 / sizeof(C); dim - at >= all)
        std::memcpy(&x, row + at, 64);
    else
        std::memcpy(&x, row + at, (dim - at) * sizeof(C));
    return x;
}

// Where the rows of positions lie; behind `count`, nullptr.
template <typename C>
inline void locate(const Cache<C>& cache, const int32_t* table, int64_t block_size, int64_t kv_head, int64_t start,
                   int64_t count, const C** rows) {
    const C* base = cache.data + kv_head * cache.head_stride;
    int64_t block = start / block_size, slot = start % block_size;
    for (int64_t j = 0; j < count;) {
        const C* row = base + table[block++] * cache.block_stride;
        for (; slot < block_size && j < count; ++slot) rows[j++] = row + slot * cache.slot_stride;
        slot = 0;
    }
    for (int64_t j = count; j < TILE + AHEAD; ++j) rows[j] = nullptr;
}

// Blocks lie scattered, which defeats the hardware's own fetching ahead.
template <typename C>
inline void fetch(const C* const* rows, int64_t j, int64_t at) {
    if (rows[j + AHEAD]) __builtin_prefetch(rows[j + AHEAD] + at);
}

// Values `from` to `to` of the keys of 16 * n positions -> panels [positions / 16][size / W][16][W], from `at` of a
// panel's `size` on, and filled up with zeros to 16 W. Those of int8 are multiplied with their position's factor.
template <typename O, typename C>
inline void pack_keys(const C* const* rows, int64_t padded, int64_t from, int64_t to, const float* factors, O* panels,
                      int64_t at, int64_t size) {
    constexpr int64_t step = 16 * WIDTH<O>;
    for (int64_t j = 0; j < padded; j += 16) {
        const bool whole = std::is_same_v<C, O> && rows[j + 15] && (to - from) % step == 0,
                   ahead = rows[j + AHEAD + 15];
        for (int64_t d = from; d < to; d += step) {
            u16x x[16];
            if (ahead)
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) __builtin_prefetch(rows[j + AHEAD + i] + d);
            if (whole) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) x[i] = native::dwords(rows[j + i] + d);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    x[i] = rows[j + i] ? dwords(rows[j + i], d, to, factors ? factors[j + i] : 1.0f, O{}) : u16x{};
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
        const bool both = rows[j + 1], ahead = rows[j + AHEAD + 1];
        int64_t d = 0;
        for (; d + 32 <= dim; d += 32) {
            if (ahead) {
                __builtin_prefetch(rows[j + AHEAD] + d);
                __builtin_prefetch(rows[j + AHEAD + 1] + d);
            }
            h32 even{}, odd{};
            if (both || rows[j]) std::memcpy(&even, rows[j] + d, 64);
            if (both) std::memcpy(&odd, rows[j + 1] + d, 64);
            interleave(even, odd, panels + d / 16 * VALUE_PANEL + j * 16, panels + (d / 16 + 1) * VALUE_PANEL + j * 16);
        }
        if (d < dim) {
            h32 even{}, odd{};
            if (rows[j]) std::memcpy(&even, rows[j] + d, (dim - d) * sizeof(bf16));
            if (both) std::memcpy(&odd, rows[j + 1] + d, (dim - d) * sizeof(bf16));
            interleave(even, odd, panels + d / 16 * VALUE_PANEL + j * 16,
                       dim - d > 16 ? panels + (d / 16 + 1) * VALUE_PANEL + j * 16 : nullptr);
        }
    }
}

// A row of a panel, as operands: at `line` lie 16 W values.
template <typename O, typename C>
inline u16x operands(const C* line) {
    if constexpr (std::is_same_v<C, O>) return native::dwords(line);
    return dwords(line, 0, 16 * WIDTH<O>, 1.0f, O{});
}

// The same of the last of `count` positions: what lies behind it counts as 0 (it may be NaN).
template <typename O, typename C>
inline u16x last_operands(const C* line, int64_t count) {
    const u16x x = operands<O>(line);
    return count % WIDTH<O> ? x & 0xffffu : x;
}

// M rows' scores of two chunks of positions, products added in the order of `product`. `ahead`: chunks to fetch, or
// null.
template <int M, typename O, typename C>
inline void score_chunks(const O* q, int64_t q_row, const C* const (&chunks)[2], const C* const (&ahead)[2],
                         int64_t dim, float* scores, int64_t row) {
    v16 left[M] = {}, right[M] = {};
    for (int64_t d = 0; d < dim; d += WIDTH<O>) {
        for (const C* chunk : ahead)
            if (chunk) __builtin_prefetch(chunk + d * CHUNK, 0, 2);
        const u16x first = operands<O>(chunks[0] + d * CHUNK), second = operands<O>(chunks[1] + d * CHUNK);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            left[m] = multiply_add(left[m], q + m * q_row + d, first);
            right[m] = multiply_add(right[m], q + m * q_row + d, second);
        }
    }
    for (int m = 0; m < M; ++m) {
        store(scores + m * row, left[m]);
        store(scores + m * row + CHUNK, right[m]);
    }
}

// Adds to M rows of `out` the values of `count` positions, in 16 P of their dimensions from `at` on.
template <int M, int P, typename O, typename C>
inline void mix_chunks(const O* weights, int64_t row, const C* const* chunks, int64_t count, int64_t dim, int64_t at,
                       float* out, int64_t out_row) {
    v16 sum[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) sum[m][p] = load(out + m * out_row + at + p * LANES);
    for (int64_t j = 0; j < count; j += WIDTH<O>) {
        const int64_t line = j % CHUNK * dim + at * WIDTH<O>;
        const C *from = chunks[j / CHUNK] + line, *ahead = chunks[j / CHUNK + CHUNKS_AHEAD];
        const bool is_last = j + WIDTH<O> > count;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            if (ahead) __builtin_prefetch(ahead + line + p * LANES * WIDTH<O>, 0, 2);
            const C* own = from + p * LANES * WIDTH<O>;
            const u16x values = is_last ? last_operands<O>(own, count) : operands<O>(own);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sum[m][p] = multiply_add(sum[m][p], weights + m * row + j, values);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(out + m * out_row + at + p * LANES, sum[m][p]);
}

// The chunks of a tile in the order in which they are read: keys, values, and what comes next, null where nothing does.
template <typename C>
struct Chunks {
    const C* at[2 * TILE / CHUNK + CHUNKS_AHEAD];
    int64_t num;

    template <typename T>
    Chunks(const Attention<T, C>& attention, const Task& task, int64_t kv_head, bool another_head, int64_t start,
           int64_t count)
        : num((count + CHUNK - 1) / CHUNK) {
        const int32_t* table = attention.block_tables + task.sequence * attention.table_stride;
        const auto of = [&](const Cache<C>& cache, int64_t head, int64_t position) {
            const int64_t block = table[position / attention.block_size];
            return cache.data + block * cache.block_stride + head * cache.head_stride +
                   position % attention.block_size * cache.dim;
        };
        for (int64_t i = 0; i < num; ++i) {
            at[i] = of(attention.keys, kv_head, start + i * CHUNK);
            at[num + i] = of(attention.values, kv_head, start + i * CHUNK);
        }
        const int64_t next = start + TILE < task.end ? start + TILE : task.begin,
                      head = start + TILE < task.end ? kv_head : kv_head + 1;
        for (int64_t i = 0; i < CHUNKS_AHEAD; ++i)
            at[2 * num + i] = (head == kv_head || another_head) && next + i * CHUNK < task.end
                                  ? of(attention.keys, head, next + i * CHUNK)
                                  : nullptr;
    }

    const C* const* keys() const { return at; }
    const C* const* values() const { return at + num; }
};

#if defined(__AVX512F__)
constexpr int SUMS = 16;  // that registers hold beside operands
#else
constexpr int SUMS = 6;
#endif

// f of M as a constant, 1 to FEW_ROWS.
template <int N = FEW_ROWS, typename F>
inline void with_rows(int64_t M, const F& f) {
    if constexpr (N > 0) {
        if (M == N) return f(std::integral_constant<int, N>{});
        with_rows<N - 1>(M, f);
    }
}

// The same chunks to panels, for products of many rows: keys [positions / 16][size / W][16][W] with zeros from `dim`
// on,
template <typename O, typename C>
inline void copy_keys(const Chunks<C>& chunks, int64_t dim, int64_t size, O* panels) {
    for (int64_t i = 0; i < chunks.num; ++i, panels += size * CHUNK) {
        for (int64_t d = 0; d < dim; d += WIDTH<O>) {
            const u16x x = operands<O>(chunks.keys()[i] + d * CHUNK);
            std::memcpy(panels + d * CHUNK, &x, sizeof x);
        }
        std::memset(panels + dim * CHUNK, 0, (size - dim) * CHUNK * sizeof(O));
    }
}

// values [dim / 16][TILE / W][16][W], VALUE_PANEL values apart, with zeros from `count` to `padded`.
template <typename O, typename C>
inline void copy_values(const Chunks<C>& chunks, int64_t count, int64_t padded, int64_t dim, O* panels) {
    for (int64_t j = 0; j < padded; j += WIDTH<O>)
        for (int64_t d = 0; d < dim; d += LANES) {
            u16x x{};
            if (j < count) {
                const C* line = chunks.values()[j / CHUNK] + j % CHUNK * dim + d * WIDTH<O>;
                x = j + WIDTH<O> > count ? last_operands<O>(line, count) : operands<O>(line);
            }
            std::memcpy(panels + d / LANES * VALUE_PANEL + j * LANES, &x, sizeof x);
        }
}

// A row's scores of a tile -> weights 2^(score - peak), of which it sees the first `visible`; 0 from there to `padded`.
// With scales of the positions' keys and values, scores are multiplied with the ones before, weights with the others
// after.
template <typename O>
inline void weigh(float* scores, O* weights, int64_t visible, int64_t padded, float scale, const float* key_scales,
                  const float* value_scales, float& peak, float& total, float& shrink) {
    if (key_scales)
        for (int64_t j = 0; j < visible; j += LANES) store(scores + j, load(scores + j) * load(key_scales + j));
    const int64_t whole = visible / LANES * LANES;
    const i16x lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i16x seen = lane < int32_t(visible - whole);
    v16 top = splat(NOTHING);
    for (int64_t j = 0; j < whole; j += LANES) top = max(top, load(scores + j));
    if (whole < visible) {
        const v16 rest = load(scores + whole);
        top = max(top, seen ? rest : splat(NOTHING));
    }
    const float before = peak;
    peak = std::max(peak, max(top) * scale);
    shrink = before == peak ? 1.0f : std::exp2(before - peak);
    v16 added{};
    constexpr bool precise = std::is_same_v<O, float>;
    int64_t j = 0;
    for (; j < whole; j += LANES) {
        const v16 weight = exp2<precise>(load(scores + j) * scale - peak);
        added += weight;
        store(weights + j, value_scales ? weight * load(value_scales + j) : weight);
    }
    if (j < visible) {
        const v16 rest = exp2<precise>(load(scores + j) * scale - peak), weight = seen ? rest : v16{};
        added += weight;
        store(weights + j, value_scales ? (seen ? weight * load(value_scales + j) : v16{}) : weight);
        j += LANES;
    }
    for (; j < padded; j += LANES) store(weights + j, v16{});
    total = total * shrink + sum(added);
}

// Values `from` to `to` of a query's row.
template <typename T, typename O>
inline void copy(const T* row, int64_t from, int64_t to, O* out) {
    if constexpr (std::is_same_v<T, O>)
        std::memcpy(out, row + from, (to - from) * sizeof(O));
    else
        for (int64_t d = from; d < to; d += LANES) store(out + d - from, load_from(row, d, to));
}

// The scales of a tile's positions; `factors`, where keys have two, what their second part is multiplied with to share
// the first one's.
template <typename C>
inline void read_scales(const Cache<C>& cache, const int32_t* table, int64_t block_size, int64_t num_kv_heads,
                        int64_t kv_head, int64_t start, int64_t count, int64_t end, float* scales, float* factors) {
    int64_t block = start / block_size, slot = start % block_size;
    for (int64_t j = 0; j < count;) {
        const auto of = [&](int64_t b) {
            return cache.scales + (table[b] * num_kv_heads + kv_head) * block_size * cache.num_scales;
        };
        if (const int64_t next = block + std::max<int64_t>(1, TILE / block_size); next * block_size < end)
            __builtin_prefetch(of(next));  // the next tile's
        const float* own = of(block++);
        for (; slot < block_size && j < count; ++slot, ++j) {
            const float* both = own + slot * cache.num_scales;
            scales[j] = both[0];
            if (factors) factors[j] = both[cache.num_scales - 1] / both[0];
        }
        slot = 0;
    }
    for (int64_t j = count; j < TILE; ++j) scales[j] = 0;
}

// A row's values before they are divided by their total weight, relative to the highest score (which is an exponent of
// 2).
struct Result {
    float* values;
    float total = 0, peak = NOTHING;

    __attribute__((noinline)) void add(const float* others, float other_total, float other_peak,
                                       int64_t dim) {  // in one way, to the bit
        if (other_total == 0) return;                  // nothing seen
        const float top = std::max(peak, other_peak), own = std::exp2(peak - top), other = std::exp2(other_peak - top);
        for (int64_t d = 0; d < dim; d += LANES) store(values + d, load(values + d) * own + load(others + d) * other);
        total = total * own + other_total * other;
        peak = top;
    }
};

// A task for one key head; with a null task, none.
struct Job {
    const Task* task;
    int64_t kv_head;
};

// The blocks, where they are made of whole chunks, of a tile's keys, to be fetched while another tile is computed.
template <typename C>
struct Blocks {
    const char* at[TILE / CHUNK];
    Ahead ahead{at, 0, 0};

    template <typename T>
    Blocks(const Attention<T, C>& attention, const Job& job, int64_t start) {
        const Cache<C>& keys = attention.keys;
        if (!job.task || attention.block_size % CHUNK || keys.slot_stride != keys.dim) return;
        const int32_t* table = attention.block_tables + job.task->sequence * attention.table_stride;
        for (int64_t position = start; position < std::min<int64_t>(start + TILE, job.task->end); position += CHUNK) {
            const int64_t block = table[position / attention.block_size];
            at[ahead.num_pieces++] =
                (const char*)(keys.data + block * keys.block_stride + job.kv_head * keys.head_stride +
                              position % attention.block_size * keys.dim);
        }
        ahead.size = CHUNK * keys.dim * sizeof(C);
    }
};

// One job, `next` being what this thread is likely to compute then. The partial result of a row: its values' weighted
// sum, total weight, highest score.
template <typename T, typename C>
void attend(const Attention<T, C>& attention, const Job& job, const Job& next, float* partials) {
    const Task& task = *job.task;
    const int64_t kv_head = job.kv_head;
    const bool another_head = next.task == job.task;
    typedef typename Operand<T>::type O;
    const int64_t group = attention.num_heads / attention.num_kv_heads, num_rows = task.num_tokens * group;
    const int64_t first_dim = attention.keys.first,
                  second_at = round_up(first_dim, 16 * WIDTH<O>);  // the keys' two parts
    const int64_t key_dim = second_at + round_up(attention.keys.dim - first_dim, 16 * WIDTH<O>),
                  value_dim = round_up(attention.values.dim, LANES);
    const int64_t held = round_up(num_rows, ROWS);
    const int64_t row = TILE + PADDING, out_row = value_dim + PADDING;
    const bool few = attention.in_panels && task.num_tokens == 1 && num_rows <= FEW_ROWS;
    const float scale = attention.scale * 1.44269504089f;  // exponents are of 2

    char* memory =
        scratch((held * key_dim + TILE * key_dim + value_dim / 16 * VALUE_PANEL + ROW_BLOCK * row) * sizeof(O) +
                (2 * held * out_row + ROW_BLOCK * row + 2 * held) * 4 + held * sizeof(Result));
    O* q = reinterpret_cast<O*>(memory);
    O* key_panels = q + held * key_dim;
    O* value_panels = key_panels + TILE * key_dim;
    O* weights = value_panels + value_dim / 16 * VALUE_PANEL;
    float* out = reinterpret_cast<float*>(weights + ROW_BLOCK * row);
    float* sums = out + held * out_row;  // of the spans before
    float* scores = sums + held * out_row;
    float* peaks = scores + ROW_BLOCK * row;
    float* totals = peaks + held;
    Result* results = reinterpret_cast<Result*>(totals + held);
    const bool in_spans = task.begin / attention.span < (task.end - 1) / attention.span;

    std::memset(q, 0, held * key_dim * sizeof(O));
    for (int64_t r = 0; r < num_rows; ++r) {
        const T* from = attention.q.data + (task.first_token + r / group) * attention.q.token_stride +
                        (kv_head * group + r % group) * attention.q.head_stride;
        copy(from, 0, first_dim, q + r * key_dim);
        copy(from, first_dim, attention.q.dim, q + r * key_dim + second_at);
        peaks[r] = NOTHING;
        totals[r] = 0;
        results[r] = {sums + r * out_row};
    }
    std::memset(out, 0, held * out_row * sizeof(float));
    if (in_spans) std::memset(sums, 0, held * out_row * sizeof(float));
    const auto end_span = [&] {
        for (int64_t r = 0; r < num_rows; ++r) {
            results[r].add(out + r * out_row, totals[r], peaks[r], value_dim);
            peaks[r] = NOTHING;
            totals[r] = 0;
        }
        std::memset(out, 0, held * out_row * sizeof(float));
    };

    const int32_t* table = attention.block_tables + task.sequence * attention.table_stride;
    for (int64_t start = task.begin; start < task.end; start += TILE) {
        if (start > task.begin && start % attention.span == 0) end_span();
        const int64_t count = std::min<int64_t>(TILE, task.end - start), padded = round_up(count, 32);
        alignas(64) float key_scales[TILE], value_scales[TILE], factors[TILE];
        constexpr bool scaled = std::is_same_v<C, int8_t>;
        if constexpr (scaled) {
            read_scales(attention.keys, table, attention.block_size, attention.num_kv_heads, kv_head, start, count,
                        task.end, key_scales, first_dim < attention.keys.dim ? factors : nullptr);
            read_scales(attention.values, table, attention.block_size, attention.num_kv_heads, kv_head, start, count,
                        task.end, value_scales, nullptr);
        }
        if (attention.in_panels) {
            const Chunks<C> chunks(attention, task, kv_head, another_head, start, count);
            const int64_t dim = attention.keys.dim;
            if (few) {
                with_rows(num_rows, [&](auto rows) {
                    constexpr int M = rows, P = std::max(1, std::min(4, SUMS / M));
                    for (int64_t i = 0; i < chunks.num; i += 2) {  // an odd one out is computed twice
                        const int64_t second = std::min(i + 1, chunks.num - 1);
                        score_chunks<M>(q, key_dim, {chunks.keys()[i], chunks.keys()[second]},
                                        {chunks.keys()[i + CHUNKS_AHEAD], chunks.keys()[second + CHUNKS_AHEAD]}, dim,
                                        scores + i * CHUNK, row);
                    }
                    for (int64_t r = 0; r < M; ++r) {
                        float shrink;
                        weigh(scores + r * row, weights + r * row, count, padded, scale, scaled ? key_scales : nullptr,
                              scaled ? value_scales : nullptr, peaks[r], totals[r], shrink);
                        for (int64_t d = 0; d < value_dim; d += LANES)
                            store(out + r * out_row + d, load(out + r * out_row + d) * shrink);
                    }
                    int64_t d = 0;
                    for (; d + P * LANES <= dim; d += P * LANES)
                        mix_chunks<M, P>(weights, row, chunks.values(), count, dim, d, out, out_row);
                    for (; d < dim; d += LANES)
                        mix_chunks<M, 1>(weights, row, chunks.values(), count, dim, d, out, out_row);
                });
                continue;
            }
            copy_keys(chunks, dim, key_dim, key_panels);
            copy_values(chunks, count, padded, dim, value_panels);
        } else {
            const int64_t located = std::min<int64_t>(TILE + AHEAD, task.end - start);
            const C* rows[TILE + AHEAD];
            locate(attention.keys, table, attention.block_size, kv_head, start, located, rows);
            pack_keys(rows, padded, 0, first_dim, nullptr, key_panels, 0, key_dim);
            pack_keys(rows, padded, first_dim, attention.keys.dim, scaled ? factors : nullptr, key_panels, second_at,
                      key_dim);
            locate(attention.values, table, attention.block_size, kv_head, start, located, rows);
            pack_values(rows, padded, attention.values.dim, value_panels);
        }
        const bool is_last = start + TILE >= task.end;
        const Blocks<C> following(attention, is_last ? next : job,
                                  is_last && next.task ? next.task->begin : start + TILE);
        for (int64_t first = 0; first < num_rows; first += ROW_BLOCK) {
            const int64_t M = std::min(ROW_BLOCK, num_rows - first);
            const int64_t most =
                std::min(count, task.position + (first + M - 1) / group + 1 - start);  // seen by the last row
            if (most <= 0) continue;
            const int64_t N = round_up(most, 32);
            product(q + first * key_dim, key_dim, key_panels, 16 * key_dim, scores, row, M, N, key_dim, false,
                    first == 0 ? following.ahead : Ahead{});
            for (int64_t m = 0; m < M; ++m) {
                const int64_t r = first + m;
                const int64_t visible = std::clamp<int64_t>(task.position + r / group + 1 - start, 0, count);
                float shrink = 1;
                if (visible)
                    weigh(scores + m * row, weights + m * row, visible, N, scale, scaled ? key_scales : nullptr,
                          scaled ? value_scales : nullptr, peaks[r], totals[r], shrink);
                else
                    std::memset(weights + m * row, 0, N * sizeof(O));
                if (shrink != 1)
                    for (int64_t d = 0; d < value_dim; d += LANES)
                        store(out + r * out_row + d, load(out + r * out_row + d) * shrink);
            }
            product(weights, row, value_panels, VALUE_PANEL, out + first * out_row, out_row, M, value_dim, N, true);
        }
    }

    if (in_spans) end_span();
    for (int64_t r = 0; r < num_rows; ++r) {
        const int64_t head = kv_head * group + r % group;
        if (task.partial < 0) {
            T* to =
                attention.out + ((task.first_token + r / group) * attention.num_heads + head) * attention.values.dim;
            const float *values = in_spans ? results[r].values : out + r * out_row,
                        total = in_spans ? results[r].total : totals[r];
            for (int64_t d = 0; d < value_dim; d += LANES)
                store_to(to, d, attention.values.dim, load(values + d) / total);
        } else {
            float* to = partials + ((task.partial + r / group) * attention.num_heads + head) * (value_dim + LANES);
            std::memcpy(to, out + r * out_row, value_dim * sizeof(float));
            to[value_dim] = totals[r];
            to[value_dim + 1] = peaks[r];
        }
    }
}

// The sum of a head's partial results.
template <typename T, typename C>
void merge(const Attention<T, C>& attention, const Merge& part, int64_t head, const float* partials) {
    const int64_t value_dim = round_up(attention.values.dim, LANES), size = value_dim + LANES;
    Result result{reinterpret_cast<float*>(scratch(value_dim * sizeof(float)))};
    std::memset(result.values, 0, value_dim * sizeof(float));
    for (int64_t p = 0; p < part.num_partials; ++p) {
        const float* own = partials + ((part.first_partial + p * part.step) * attention.num_heads + head) * size;
        result.add(own, own[value_dim], own[value_dim + 1], value_dim);
    }
    T* to = attention.out + (part.token * attention.num_heads + head) * attention.values.dim;
    for (int64_t d = 0; d < value_dim; d += LANES)
        store_to(to, d, attention.values.dim, load(result.values + d) / result.total);
}

// All tasks, heaviest first as they come; where there are enough of them, a task's heads follow one another.
template <typename T, typename C>
void run(const Attention<T, C>& attention, const Task* tasks, int64_t num_tasks, const Merge* merges,
         int64_t num_merges, float* partials) {
    const int64_t heads = attention.num_kv_heads, together = num_tasks >= 8 * num_threads() ? heads : 1;
    const auto job = [&](int64_t i) {
        return i < num_tasks * heads ? Job{tasks + i / heads, i % heads} : Job{nullptr, 0};
    };
    parallel(num_tasks * heads / together, [&](int64_t i) {
        const Tiles tiles;
        const int64_t first = i * together, others = (num_threads() - 1) * together;
        for (int64_t j = first; j < first + together; ++j)
            attend(attention, job(j), job(j + 1 < first + together ? j + 1 : j + 1 + others), partials);
    });
    parallel_spans(num_merges * attention.num_heads, 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            merge(attention, merges[i / attention.num_heads], i % attention.num_heads, partials);
    });
}

}  // namespace native
