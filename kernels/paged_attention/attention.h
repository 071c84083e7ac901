// Attention over cached keys and values in tiles, with an online softmax (Milakov and Gimelshein 2018; Dao et al.
// 2022). A task is some rows (token, query head) of one sequence that read one key head, over a range of positions. A
// tile's keys and values are brought into panels (rows.h, chunks.h), then blocks of rows take scores = Q K^T, the
// softmax so far (softmax.h), and O += P V. Of bf16, P is rounded to bf16; sums are fp32. For a decoding sequence's few
// rows, a cache that lies in panels is read where it lies.
//
// A row's result depends on its sequence alone: tiles begin at multiples of TILE, what a row may not see weighs exactly
// 0 (be it computed or left out), and results are made for spans of positions, then put together in their order, be it
// by the task that computed them or from tasks for one span each.
#pragma once

#include "chunks.h"
#include "softmax.h"

namespace native {

constexpr int64_t ROW_BLOCK = 32;  // rows whose scores are held at a time
constexpr int64_t STEP = 32;       // positions that products begin and end at

// A task for one key head; with a null task, none.
struct Job {
    const Task* task;
    int64_t kv_head;
};

// The positions `begin` to `count` of those from `start` on that a task attends to, and the scales of their keys and
// values, if they have any. Where keys have two scales, `factors` are what their second part is multiplied with to
// share the first one's.
struct Tile {
    int64_t start, begin, count, padded;
    alignas(64) float key_scales[TILE], value_scales[TILE], factors[TILE];
};

template <typename C>
inline void read_scales(const Cache<C>& cache, BlockTable table, int64_t block_size, int64_t num_kv_heads,
                        int64_t kv_head, const Tile& tile, int64_t end, float* scales, float* factors) {
    int64_t block = (tile.start + tile.begin) / block_size, slot = (tile.start + tile.begin) % block_size;
    for (int64_t j = 0; j < tile.begin; ++j) scales[j] = 0;
    for (int64_t j = tile.begin; j < tile.count;) {
        const auto of = [&](int64_t b) {
            return cache.scales + (table[b] * num_kv_heads + kv_head) * block_size * cache.num_scales;
        };
        if (const int64_t next = block + std::max<int64_t>(1, TILE / block_size); next * block_size < end)
            __builtin_prefetch(of(next));  // the next tile's
        const Scale<C>* own = of(block++);
        for (; slot < block_size && j < tile.count; ++slot, ++j) {
            const Scale<C>* both = own + slot * cache.num_scales;
            scales[j] = load1(both);
            if (factors) factors[j] = load1(both + cache.num_scales - 1) / scales[j];
        }
        slot = 0;
    }
    for (int64_t j = tile.count; j < TILE; ++j) scales[j] = 0;
}

// The blocks, where they are made of whole chunks, of a tile's keys from a position on, to be fetched while another
// tile is computed.
template <typename C>
struct Blocks {
    const char* at[TILE / CHUNK];
    Ahead ahead{at, 0, 0};

    template <typename T>
    Blocks(const Attention<T, C>& attention, const Job& job, int64_t from) {
        const Cache<C>& keys = attention.keys;
        if (!job.task || attention.block_size % CHUNK || !attention.in_panels) return;
        const BlockTable table = attention.plan.table(*job.task);
        const int64_t end = std::min<int64_t>(from / TILE * TILE + TILE, job.task->end);
        for (int64_t position = from / CHUNK * CHUNK; position < end; position += CHUNK) {
            const int64_t block = table[position / attention.block_size];
            at[ahead.num_pieces++] =
                (const char*)(keys.data + block * keys.block_stride + job.kv_head * keys.head_stride +
                              position % attention.block_size * keys.slot_stride);
        }
        ahead.size = CHUNK * keys.slot_stride * sizeof(C);
    }
};

// A row's final result, of packed values rotated back.
template <typename C, typename T>
inline void store_result(const Result& result, T* to, int64_t dim) {
    if constexpr (std::is_same_v<C, Packed>) rotate_packed(result.values, dim);
    result.store(to, dim);
}

// One job.
template <typename T, typename C>
class Attend {
 public:
    Attend(const Attention<T, C>& attention, const Job& job)
        : attention(attention), task(*job.task), kv_head(job.kv_head) {
        char* memory =
            scratch((held * key_dim + TILE * key_dim + value_dim / 16 * VALUE_PANEL + ROW_BLOCK * row) * sizeof(O) +
                    (2 * held * out_row + ROW_BLOCK * row) * sizeof(float) + 2 * held * sizeof(Result));
        const auto take = [&](auto& matrix, int64_t count, int64_t stride) {
            matrix = {reinterpret_cast<decltype(matrix.data)>(memory), stride};
            memory += count * stride * sizeof *matrix.data;
        };
        take(q, held, key_dim);
        take(key_panels, TILE / PANEL, PANEL * key_dim);
        take(value_panels, value_dim / PANEL, VALUE_PANEL);
        take(weights, ROW_BLOCK, row);
        take(out, held, out_row);
        take(sums, held, out_row);
        take(scores, ROW_BLOCK, row);
        of_span = reinterpret_cast<Result*>(memory);
        of_all = of_span + held;
    }

    // `next` is what this thread is likely to compute then.
    void run(const Job& next, float* partials) {
        begin();
        for (int64_t start = task.begin / TILE * TILE; start < task.end; start += TILE) {
            if (start > task.begin && start % attention.plan.span == 0) end_span();
            attend_tile(start, next);
        }
        if (in_spans) end_span();
        for (int64_t r = 0; r < num_rows; ++r)
            task.partial < 0 ? finish(r, in_spans ? of_all[r] : of_span[r]) : finish_part(r, partials);
    }

 private:
    typedef typename Operand<T>::type O;
    static constexpr bool SCALED = !std::is_same_v<C, T>;

    const Attention<T, C>& attention;
    const Task& task;
    const int64_t kv_head;
    const BlockTable table = attention.plan.table(task);
    const int64_t group = attention.num_heads / attention.num_kv_heads, num_rows = task.num_tokens * group;
    const int64_t held = round_up(num_rows, ROWS);
    const int64_t first_dim = attention.keys.first,  // of the keys' two parts
        second_at = round_up(first_dim, 16 * GROUP<O>);
    const int64_t key_dim = second_at + round_up(attention.keys.dim - first_dim, 16 * GROUP<O>),
                  value_dim = round_up(attention.values.dim, LANES);
    const int64_t row = TILE + PADDING, out_row = value_dim + PADDING;
    const bool few = attention.in_panels && task.num_tokens == 1 && num_rows <= FEW_ROWS;
    const bool in_spans = task.begin / attention.plan.span < (task.end - 1) / attention.plan.span;
    Matrix<O> q, key_panels, value_panels, weights;
    Matrix<float> out, sums, scores;  // values of a span and of those before
    Result *of_span = nullptr, *of_all = nullptr;

    void begin() {
        std::memset(q.data, 0, held * key_dim * sizeof(O));
        for (int64_t r = 0; r < num_rows; ++r) {
            const T* from = attention.q.row(task.first_token + r / group, head_of(r));
            copy(from, 0, first_dim, q.row(r));
            copy(from, first_dim, attention.keys.dim, q.row(r) + second_at);
            of_span[r] = {out.row(r)};
            of_all[r] = {sums.row(r)};
        }
        std::memset(out.data, 0, held * out_row * sizeof(float));
        if (in_spans) std::memset(sums.data, 0, held * out_row * sizeof(float));
    }

    // Values `from` to `to` of a query's row.
    static void copy(const T* row, int64_t from, int64_t to, O* out) {
        if constexpr (std::is_same_v<T, O>)
            std::memcpy(out, row + from, (to - from) * sizeof(O));
        else
            for (int64_t d = from; d < to; d += LANES) store(out + d - from, load_from(row, d, to));
    }

    void end_span() {
        for (int64_t r = 0; r < num_rows; ++r) {
            of_all[r].add(out.row(r), of_span[r].total, of_span[r].peak, value_dim);
            of_span[r] = {out.row(r)};
        }
        std::memset(out.data, 0, held * out_row * sizeof(float));
    }

    void attend_tile(int64_t start, const Job& next) {
        Tile tile;
        tile.start = start, tile.begin = std::max<int64_t>(0, task.begin - start);
        tile.count = std::min<int64_t>(TILE, task.end - start), tile.padded = round_up(tile.count, STEP);
        if constexpr (SCALED) {
            const auto read = [&](const Cache<C>& cache, float* scales, float* factors) {
                read_scales(cache, table, attention.block_size, attention.num_kv_heads, kv_head, tile, task.end, scales,
                            factors);
            };
            read(attention.keys, tile.key_scales, first_dim < attention.keys.dim ? tile.factors : nullptr);
            read(attention.values, tile.value_scales, nullptr);
        }
        if (attention.in_panels) {
            const int64_t skipped = tile.begin / CHUNK * CHUNK, count = tile.count - skipped;
            const Chunks<C> chunks(attention, task, kv_head, next.task == &task, start + skipped, count);
            if (few) return attend_few(tile, chunks, skipped);
            copy_keys(chunks, attention.keys.dim, key_dim, key_panels.data + skipped * key_dim);
            copy_values(chunks, count, tile.padded - skipped, attention.values.dim,
                        value_panels.data + skipped * PANEL);
            clear_values(tile.begin / STEP * STEP, skipped);
        } else {
            pack(tile);
        }
        attend_rows(tile, next);
    }

    // The chunks are those of the tile but for `skipped` positions at its beginning.
    void attend_few(const Tile& tile, const Chunks<C>& chunks, int64_t skipped) {
        with_rows(num_rows, [&](auto rows) {
            score<rows, O>({q.data, key_dim}, chunks, attention.keys.dim, {scores.data + skipped, scores.stride});
            for (int64_t r = 0; r < rows; ++r) weigh_row(tile, r, r, skipped, tile.padded);
            mix<rows, O>({weights.data + skipped, row}, chunks, tile.count - skipped, value_dim, out);
        });
    }

    // Values of positions that nobody reads, and that weigh 0: memory may hold NaN.
    void clear_values(int64_t begin, int64_t end) {
        if (begin == end) return;
        for (int64_t d = 0; d < value_dim; d += PANEL)
            std::memset(value_panels.row(d / PANEL) + begin * PANEL, 0, (end - begin) * PANEL * sizeof(O));
    }

    void pack(const Tile& tile) {
        const int64_t located = std::min<int64_t>(TILE + AHEAD, task.end - tile.start);
        const int64_t skipped = tile.begin / STEP * STEP, padded = tile.padded - skipped;
        O* const keys = key_panels.data + skipped * key_dim;
        const C* rows[TILE + AHEAD];
        locate(attention.keys, table, attention.block_size, kv_head, tile.start, tile.begin, located, rows);
        pack_keys(rows + skipped, padded, 0, first_dim, nullptr, keys, 0, key_dim);
        if constexpr (std::is_same_v<C, Packed>) {  // int8, as their second part always is
            const int8_t* second[TILE + AHEAD];
            for (int64_t j = 0; j < TILE + AHEAD; ++j)
                second[j] =
                    rows[j] ? reinterpret_cast<const int8_t*>(rows[j] + value_row<C>(first_dim)) - first_dim : nullptr;
            pack_keys(second + skipped, padded, first_dim, attention.keys.dim, tile.factors + skipped, keys, second_at,
                      key_dim);
        } else {
            pack_keys(rows + skipped, padded, first_dim, attention.keys.dim, SCALED ? tile.factors + skipped : nullptr,
                      keys, second_at, key_dim);
        }
        locate(attention.values, table, attention.block_size, kv_head, tile.start, tile.begin, located, rows);
        pack_values(rows + skipped, padded, attention.values.dim, value_panels.data + skipped * PANEL);
    }

    void attend_rows(const Tile& tile, const Job& next) {
        const bool is_last = tile.start + TILE >= task.end;
        const Blocks<C> following(attention, is_last ? next : Job{&task, kv_head},
                                  is_last && next.task ? next.task->begin : tile.start + TILE);
        for (int64_t first = 0; first < num_rows; first += ROW_BLOCK) {
            const int64_t M = std::min(ROW_BLOCK, num_rows - first);
            const int64_t least = first_seen(tile, first), most = seen(tile, first + M - 1);
            if (most <= least) continue;
            const int64_t begin = least / STEP * STEP, N = round_up(most, STEP) - begin;
            product<false, O>({q.row(first), key_dim}, M, {key_panels.row(begin / PANEL), key_panels.stride}, N,
                              {scores.data + begin, scores.stride}, key_dim, first == 0 ? following.ahead : Ahead{});
            for (int64_t m = 0; m < M; ++m) weigh_row(tile, first + m, m, begin, begin + N);
            product<true, O>({weights.data + begin, row}, M, {value_panels.data + begin * PANEL, VALUE_PANEL},
                             value_dim, out.from(first), N);
        }
    }

    // The positions of a tile that a row sees: from its window's first to its own.
    int64_t first_seen(const Tile& tile, int64_t r) const {
        return std::max(tile.begin, attention.plan.first_seen(task.position + r / group) - tile.start);
    }
    int64_t seen(const Tile& tile, int64_t r) const {
        return std::min<int64_t>(tile.count, task.position + r / group + 1 - tile.start);
    }

    // Row r's scores, which are those of row m of a block, to weights; its values so far on the new scale. What it does
    // not see from `begin` to `end` weighs 0.
    void weigh_row(const Tile& tile, int64_t r, int64_t m, int64_t begin, int64_t end) {
        const int64_t first = first_seen(tile, r), last = seen(tile, r);
        if (last <= first) {
            std::memset(weights.row(m) + begin, 0, (end - begin) * sizeof(O));
            return;
        }
        const float scale = attention.scale * 1.44269504089f;  // exponents are of 2
        const float shrink =
            weigh(scores.row(m), weights.row(m), begin, first, last, end, scale, SCALED ? tile.key_scales : nullptr,
                  SCALED ? tile.value_scales : nullptr, of_span[r]);
        if (shrink == 1) return;
        for (int64_t d = 0; d < value_dim; d += LANES) store(out.row(r) + d, load(out.row(r) + d) * shrink);
    }

    int64_t head_of(int64_t r) const { return kv_head * group + r % group; }

    void finish(int64_t r, const Result& result) const {
        T* to =
            attention.out + ((task.first_token + r / group) * attention.num_heads + head_of(r)) * attention.values.dim;
        store_result<C>(result, to, attention.values.dim);
    }

    // The partial result of a row: its values, total and peak.
    void finish_part(int64_t r, float* partials) const {
        float* to = partials + ((task.partial + r / group) * attention.num_heads + head_of(r)) * (value_dim + LANES);
        std::memcpy(to, out.row(r), value_dim * sizeof(float));
        to[value_dim] = of_span[r].total;
        to[value_dim + 1] = of_span[r].peak;
    }
};

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
    store_result<C>(result, attention.out + (part.token * attention.num_heads + head) * attention.values.dim,
                    attention.values.dim);
}

// Queries rotated as packed keys are. Those of rows pair values 16 apart, as a byte does (rows.h).
template <typename T>
View<const T, 3> rotated(const Attention<T, Packed>& attention, Scratch<T>& memory) {
    const int64_t* const shape = attention.q.shape;
    const int64_t dim = shape[2], first = attention.keys.first;
    T* const out = memory.room(shape[0] * shape[1] * dim);
    parallel_rows(shape[0] * shape[1], 8, [&](int64_t i) {
        const T* const from = attention.q.row(i / shape[1], i % shape[1]);
        T* const to = out + i * dim;
        float* const row = reinterpret_cast<float*>(scratch(first * sizeof(float)));
        for (int64_t d = 0; d < first; d += LANES) store(row + d, load(from + d));
        rotate_packed(row, first);
        if (attention.in_panels || PAIR<T> == 1)
            for (int64_t d = 0; d < first; d += LANES) store(to + d, load(row + d));
        else
            for (int64_t d = 0; d < first; d += 32) {
                const v16 a = load(row + d), b = load(row + d + 16);
                store(to + d, __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
                store(to + d + 16,
                      __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
            }
        std::memcpy(to + first, from + first, (dim - first) * sizeof(T));
    });
    return {out, {shape[0], shape[1], dim}, {shape[1] * dim, dim, 1}};
}

// All tasks of the plan; where there are enough of them, a task's heads follow one another.
template <typename T, typename C>
void run(Attention<T, C> attention) {
    static thread_local Scratch<float> memory;
    if constexpr (std::is_same_v<C, Packed>) {
        static thread_local Scratch<T> queries;
        attention.q = rotated(attention, queries);
    }
    const Plan& plan = attention.plan;
    float* const partials =
        memory.room(plan.num_partials * attention.num_heads * (round_up(attention.values.dim, LANES) + LANES));
    const int64_t num_tasks = plan.tasks.size(), heads = attention.num_kv_heads,
                  together = num_tasks >= 8 * num_threads() ? heads : 1;
    const auto job = [&](int64_t i) {
        return i < num_tasks * heads ? Job{&plan.tasks[i / heads], i % heads} : Job{nullptr, 0};
    };
    parallel(num_tasks * heads / together, [&](int64_t i) {
        const Tiles tiles;
        const int64_t first = i * together, others = (num_threads() - 1) * together;
        for (int64_t j = first; j < first + together; ++j)
            Attend<T, C>(attention, job(j)).run(job(j + 1 < first + together ? j + 1 : j + 1 + others), partials);
    });
    parallel_rows(plan.merges.size() * attention.num_heads, 8, [&](int64_t i) {
        merge(attention, plan.merges[i / attention.num_heads], i % attention.num_heads, partials);
    });
}

}  // namespace native
