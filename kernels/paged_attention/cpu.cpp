// Paged attention on a CPU. Contract: kernels/paged_attention/__init__.py.
//
// A tile is up to 4 rows (query, head) of one sequence that read the same key head. It walks the sequence's blocks in
// chunks of 64 positions with an online softmax (Milakov and Gimelshein 2018), so each key and value is read once a tile
// and nothing of the size of the context is written. Tiles are shared out to the threads as they become free.
#include "../native/common.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

using namespace native;

constexpr int64_t CHUNK = 64;
constexpr int64_t MAX_ROWS = 4;

template <typename T>
struct Batch {
    const T* q;         // [tokens, num_heads, D], rows `q_stride` apart
    const T* k_cache;   // [blocks, num_kv_heads, block_size, D]
    const T* v_cache;
    T* out;             // [tokens, num_heads, D], packed
    const int32_t* block_tables;  // [seqs, table_stride]
    const int32_t* tiles;         // [num_tiles, 4]: sequence, first token, tokens, position of the first token
    int64_t q_stride, table_stride, num_heads, num_kv_heads, block_size;
    float scale;
};

// One tile: M rows of D values, rows first_row..first_row+M of the (token, head in group) pairs of a tile entry.
template <typename T, int D, int M>
void attend(const Batch<T>& batch, const int32_t* tile, int64_t kv_head, int64_t first_row, int64_t group) {
    constexpr int V = D / LANES;
    const int32_t* table = batch.block_tables + tile[0] * batch.table_stride;
    int64_t limits[M];  // positions that each row sees
    v16 q[M][V], acc[M][V];
    float highest[M], total[M];
    int64_t offsets[M];
    for (int m = 0; m < M; ++m) {
        const int64_t token = (first_row + m) / group, head = kv_head * group + (first_row + m) % group;
        const T* from = batch.q + (tile[1] + token) * batch.q_stride + head * D;
        offsets[m] = ((tile[1] + token) * batch.num_heads + head) * D;
        limits[m] = tile[3] + token + 1;
        highest[m] = -std::numeric_limits<float>::infinity();
        total[m] = 0;
        for (int v = 0; v < V; ++v) {
            q[m][v] = load(from + v * LANES) * batch.scale;
            acc[m][v] = v16{};
        }
    }
    const int64_t end = limits[M - 1];  // rows are in order of token, so the last sees the most
    const int64_t head_stride = batch.block_size * D, block_stride = batch.num_kv_heads * head_stride;
    for (int64_t start = 0; start < end; start += CHUNK) {
        const int64_t count = std::min(CHUNK, end - start);
        int64_t where[CHUNK];
        for (int64_t j = 0; j < count; ++j) {
            const int64_t position = start + j;
            where[j] = table[position / batch.block_size] * block_stride + kv_head * head_stride + position % batch.block_size * D;
        }
        alignas(64) float scores[M][CHUNK];
        for (int64_t j = 0; j < count; ++j) {
            const T* key = batch.k_cache + where[j];
            v16 k[V];
            for (int v = 0; v < V; ++v) k[v] = load(key + v * LANES);
            for (int m = 0; m < M; ++m) {
                v16 dot = q[m][0] * k[0];
                for (int v = 1; v < V; ++v) dot += q[m][v] * k[v];
                scores[m][j] = sum(dot);
            }
        }
        for (int m = 0; m < M; ++m) {
            for (int64_t j = std::clamp<int64_t>(limits[m] - start, 0, CHUNK); j < CHUNK; ++j) scores[m][j] = -std::numeric_limits<float>::infinity();
            v16 top = load(scores[m]);
            for (int64_t j = LANES; j < CHUNK; j += LANES) top = max(top, load(scores[m] + j));
            const float peak = std::max(highest[m], max(top));
            if (peak == -std::numeric_limits<float>::infinity()) {  // this row sees nothing of the chunk, or of any before
                for (int64_t j = 0; j < CHUNK; ++j) scores[m][j] = 0;
                continue;
            }
            const float shrink = std::exp(highest[m] - peak);
            highest[m] = peak;
            v16 added{};
            for (int64_t j = 0; j < CHUNK; j += LANES) {
                const v16 weight = exp(load(scores[m] + j) - peak);
                store(scores[m] + j, weight);
                added += weight;
            }
            total[m] = total[m] * shrink + sum(added);
            for (int v = 0; v < V; ++v) acc[m][v] *= shrink;
        }
        for (int64_t j = 0; j < count; ++j) {
            const T* value = batch.v_cache + where[j];
            for (int v = 0; v < V; ++v) {
                const v16 x = load(value + v * LANES);
                for (int m = 0; m < M; ++m) acc[m][v] += scores[m][j] * x;
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) store(batch.out + offsets[m] + v * LANES, acc[m][v] / total[m]);
}

template <typename T, int D>
void run(const Batch<T>& batch, int64_t num_tiles) {
    const int64_t group = batch.num_heads / batch.num_kv_heads;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t t = 0; t < num_tiles; ++t) {
        for (int64_t kv_head = 0; kv_head < batch.num_kv_heads; ++kv_head) {
            const int32_t* tile = batch.tiles + t * 4;
            const int64_t rows = tile[2] * group;
            for (int64_t row = 0; row < rows;) {
                switch (std::min(MAX_ROWS, rows - row)) {
                    case 1: attend<T, D, 1>(batch, tile, kv_head, row, group); row += 1; break;
                    case 2: attend<T, D, 2>(batch, tile, kv_head, row, group); row += 2; break;
                    case 3: attend<T, D, 3>(batch, tile, kv_head, row, group); row += 3; break;
                    default: attend<T, D, 4>(batch, tile, kv_head, row, group); row += 4; break;
                }
            }
        }
    }
}

template <typename T>
int dispatch(const Batch<T>& batch, int64_t num_tiles, int64_t dim) {
    switch (dim) {
        case 16: run<T, 16>(batch, num_tiles); return 0;
        case 32: run<T, 32>(batch, num_tiles); return 0;
        case 48: run<T, 48>(batch, num_tiles); return 0;
        case 64: run<T, 64>(batch, num_tiles); return 0;
        case 80: run<T, 80>(batch, num_tiles); return 0;
        case 96: run<T, 96>(batch, num_tiles); return 0;
        case 112: run<T, 112>(batch, num_tiles); return 0;
        case 128: run<T, 128>(batch, num_tiles); return 0;
        default: return 1;
    }
}

}  // namespace

#define DEFINE(NAME, T)                                                                                                       \
    extern "C" int NAME(const T* q, int64_t q_stride, const T* k_cache, const T* v_cache, T* out, const int32_t* block_tables, \
                        int64_t table_stride, const int32_t* tiles, int64_t num_tiles, int64_t num_heads, int64_t num_kv_heads, \
                        int64_t block_size, int64_t dim, float scale) {                                                         \
        const Batch<T> batch{q, k_cache, v_cache, out, block_tables, tiles, q_stride, table_stride, num_heads, num_kv_heads,    \
                             block_size, scale};                                                                                \
        return dispatch(batch, num_tiles, dim);                                                                                 \
    }

DEFINE(paged_attention_bf16, native::bf16)
DEFINE(paged_attention_f32, float)
