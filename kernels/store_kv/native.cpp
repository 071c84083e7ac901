// Writing a step's tokens into the paged cache. Contract: kernels/store_kv/__init__.py.
#include "../native/pool.h"
#include "../native/scratch.h"
#include "../paged_attention/layout.h"
#include "../rotary/rotary.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace {

using namespace native;

// A row of a cache; of int8, as multiples of a scale that brings its largest value to 127.
template <typename T>
inline void write(const T* x, int64_t dim, T* row, float*) {
    std::memcpy(row, x, dim * sizeof(T));
}
template <typename T>
inline void write(const T* x, int64_t dim, int8_t* row, float* scale) {
    v16 top{};
    for (int64_t i = 0; i < dim; i += LANES) {
        const v16 value = load_from(x, i, dim);
        top = max(top, max(value, -value));
    }
    *scale = std::max(max(top), 1e-12f) / 127.0f;
    for (int64_t i = 0; i < dim; i += LANES) store_to(row, i, dim, load_from(x, i, dim) / *scale);
}

// qkv: rows of num_heads + 2 * num_kv_heads heads, `row_stride` apart; q: [num_rows, num_heads, dim], packed.
template <typename T, typename C>
void rotate_and_store(const T* qkv, int64_t row_stride, const float* cos, const float* sin, C* k_cache, C* v_cache,
                      float* k_scales, float* v_scales, const int64_t* blocks, const int64_t* offsets, T* q,
                      int64_t num_rows, int64_t num_heads, int64_t num_kv_heads, int64_t block_size, int64_t dim) {
    const bool panels = lies_in_panels(block_size, dim);
    const auto place = [&](int64_t row, int64_t head) {
        return (blocks[row] * num_kv_heads + head) * block_size + offsets[row];
    };
    // A prompt's rows go to the same lines, CHUNK by CHUNK: a span of fewer would share them with another thread's.
    parallel_spans(num_rows, num_rows < 2 * CHUNK ? 8 : CHUNK, [&](int64_t begin, int64_t end) {
        C* const made = reinterpret_cast<C*>(scratch(dim * (sizeof(T) + sizeof(C))));
        T* const key = reinterpret_cast<T*>(made + dim);
        const auto as_cached = [&](const T* x, float* scale) -> const C* {
            if constexpr (std::is_same_v<T, C>) return x;
            write(x, dim, made, scale);
            return made;
        };
        for (int64_t row = begin; row < end; ++row) {
            const T* x = qkv + row * row_stride;
            const float *c = cos + row * dim, *s = sin + row * dim;
            for (int64_t head = 0; head < num_heads; ++head, x += dim)
                rotate(x, c, s, q + (row * num_heads + head) * dim, dim);
            for (int64_t head = 0; head < num_kv_heads; ++head, x += dim) {
                const T* value = x + num_kv_heads * dim;
                const int64_t slot = place(row, head);
                rotate(x, c, s, key, dim);
                if (!panels) {
                    write(key, dim, k_cache + slot * dim, k_scales + slot);
                    write(value, dim, v_cache + slot * dim, v_scales + slot);
                    continue;
                }
                const int64_t own = slot % CHUNK, chunk = (slot - own) * dim;
                scatter_key<PAIR<T>>(as_cached(key, k_scales + slot), dim, own, k_cache + chunk);
                scatter_value<PAIR<T>>(as_cached(value, v_scales + slot), dim, own, v_cache + chunk);
            }
        }
    });
}

// x: rows of latent_dim + rotary_dim values, `row_stride` apart; the cache has one head.
template <typename T, typename C>
void store_latents(const T* x, int64_t row_stride, const T* weight, float eps, const float* cos, const float* sin,
                   C* cache, float* scales, const int64_t* blocks, const int64_t* offsets, int64_t num_rows,
                   int64_t block_size, int64_t latent_dim, int64_t rotary_dim) {
    parallel_spans(num_rows, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const T* from = x + row * row_stride;
            const int64_t slot = blocks[row] * block_size + offsets[row];
            C* to = cache + slot * (latent_dim + rotary_dim);
            T* latent = reinterpret_cast<T*>(scratch((latent_dim + rotary_dim) * sizeof(T)));
            v16 squares{};
            for (int64_t i = 0; i < latent_dim; i += LANES) {
                const v16 value = load_from(from, i, latent_dim);
                squares += value * value;
            }
            const float scale = 1.0f / std::sqrt(sum(squares) / float(latent_dim) + eps);
            for (int64_t i = 0; i < latent_dim; i += LANES)
                store_to(latent, i, latent_dim,
                         load_from(from, i, latent_dim) * scale * load_from(weight, i, latent_dim));
            rotate(from + latent_dim, cos + row * rotary_dim, sin + row * rotary_dim, latent + latent_dim, rotary_dim);
            write(latent, latent_dim, to, scales + 2 * slot);
            write(latent + latent_dim, rotary_dim, to + latent_dim, scales + 2 * slot + 1);
        }
    });
}

}  // namespace

#define DEFINE(SUFFIX, T, C)                                                                                           \
    extern "C" void rotate_and_store_##SUFFIX(                                                                         \
        const T* qkv, int64_t row_stride, const float* cos, const float* sin, C* k_cache, C* v_cache, float* k_scales, \
        float* v_scales, const int64_t* blocks, const int64_t* offsets, T* q, int64_t num_rows, int64_t num_heads,     \
        int64_t num_kv_heads, int64_t block_size, int64_t dim) {                                                       \
        rotate_and_store(qkv, row_stride, cos, sin, k_cache, v_cache, k_scales, v_scales, blocks, offsets, q,          \
                         num_rows, num_heads, num_kv_heads, block_size, dim);                                          \
    }                                                                                                                  \
    extern "C" void store_latents_##SUFFIX(const T* x, int64_t row_stride, const T* weight, float eps,                 \
                                           const float* cos, const float* sin, C* cache, float* scales,                \
                                           const int64_t* blocks, const int64_t* offsets, int64_t num_rows,            \
                                           int64_t block_size, int64_t latent_dim, int64_t rotary_dim) {               \
        store_latents(x, row_stride, weight, eps, cos, sin, cache, scales, blocks, offsets, num_rows, block_size,      \
                      latent_dim, rotary_dim);                                                                         \
    }

DEFINE(bf16, native::bf16, native::bf16)
DEFINE(f32, float, float)
DEFINE(int8_bf16, native::bf16, int8_t)
DEFINE(int8_f32, float, int8_t)
