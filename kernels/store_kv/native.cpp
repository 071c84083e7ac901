// Writing a step's tokens into the paged cache. Contract: kernels/store_kv/__init__.py.
#include "../native/binding.h"
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

// qkv: [rows, N + 2 K, D]; q: [rows, N, D].
template <typename T, typename C>
void rotate_and_store(const View<const T, 3>& qkv, const float* cos, const float* sin, const CacheView<C>& keys,
                      const CacheView<C>& values, const int64_t* slot_mapping, const View<T, 3>& q, int64_t num_rows) {
    const int64_t num_heads = q.shape[1], num_kv_heads = keys.values.shape[1], block_size = keys.values.shape[2],
                  dim = q.shape[2];
    C *const k_cache = keys.values.data, *const v_cache = values.values.data;
    float *const k_scales = keys.scales, *const v_scales = values.scales;
    const bool panels = lies_in_panels(block_size, dim);
    const auto place = [&](int64_t row, int64_t head) {
        const int64_t block = slot_mapping[row] / block_size, offset = slot_mapping[row] % block_size;
        return (block * num_kv_heads + head) * block_size + offset;
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
            const T* x = qkv.data + row * qkv.stride[0];
            const float *c = cos + row * dim, *s = sin + row * dim;
            for (int64_t head = 0; head < num_heads; ++head, x += dim)
                rotate(x, c, s, q.data + (row * num_heads + head) * dim, dim);
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

// One token's row of latent_dim + rotary_dim values; scales: the slot's two.
template <typename T, typename C>
void store_latent(const T* x, const T* weight, float eps, const float* cos, const float* sin, C* to, float* scales,
                  int64_t latent_dim, int64_t rotary_dim) {
    T* latent = reinterpret_cast<T*>(scratch((latent_dim + rotary_dim) * sizeof(T)));
    v16 squares{};
    for (int64_t i = 0; i < latent_dim; i += LANES) {
        const v16 value = load_from(x, i, latent_dim);
        squares += value * value;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / float(latent_dim) + eps);
    for (int64_t i = 0; i < latent_dim; i += LANES)
        store_to(latent, i, latent_dim, load_from(x, i, latent_dim) * scale * load_from(weight, i, latent_dim));
    rotate(x + latent_dim, cos, sin, latent + latent_dim, rotary_dim);
    write(latent, latent_dim, to, scales);
    write(latent + latent_dim, rotary_dim, to + latent_dim, scales + 1);
}

}  // namespace

void native::bind_store_kv(nb::module_& m) {
    m.def(
        "rotate_and_store",
        [](Tensor qkv_TXD, Tensor cos_TD, Tensor sin_TD, KVCache k_cache, KVCache v_cache, Tensor slot_mapping_T,
           Tensor q_TND) {
            with_dtype(qkv_TXD, "qkv_TXD", [&](auto number) {
                using T = decltype(number);
                with_cache<T>(k_cache, [&](auto cached) {
                    using C = decltype(cached);
                    const auto q = q_TND.packed<T>("q_TND", {ANY, ANY, ANY});
                    const int64_t num_tokens = q.shape[0], dim = q.shape[2];
                    const auto keys = k_cache.view<C>("k_cache", {ANY, ANY, ANY, dim}, 1);
                    const auto values = v_cache.view<C>("v_cache", keys.values.shape, 1);
                    const auto [num_blocks, num_kv_heads, block_size, _] = keys.values.shape;
                    const auto qkv = qkv_TXD.view<const T>("qkv_TXD", {num_tokens, q.shape[1] + 2 * num_kv_heads, dim});
                    const auto cos = cos_TD.packed<const float>("cos_TD", {num_tokens, dim});
                    const auto sin = sin_TD.packed<const float>("sin_TD", cos.shape);
                    const auto slots = slot_mapping_T.packed<const int64_t>("slot_mapping_T", {num_tokens});
                    check_value(qkv.stride[1] == dim && dim % 2 == 0, "heads must lie side by side, and be even");
                    launch(num_tokens, [=, num_slots = num_blocks * block_size](int64_t rows) {
                        check_indices(slots.data, rows, num_slots, "slot_mapping_T");
                        rotate_and_store(qkv, cos.data, sin.data, keys, values, slots.data, q, rows);
                    });
                });
            });
        },
        "qkv_TXD"_a, "cos_TD"_a, "sin_TD"_a, "k_cache"_a, "v_cache"_a, "slot_mapping_T"_a, "q_TND"_a);
    m.def(
        "store_latents",
        [](Tensor x_TY, Tensor weight_C, float eps, Tensor cos_TR, Tensor sin_TR, KVCache cache,
           Tensor slot_mapping_T) {
            with_dtype(x_TY, "x_TY", [&](auto number) {
                using T = decltype(number);
                with_cache<T>(cache, [&](auto cached) {
                    const auto x = x_TY.view<const T>("x_TY", {ANY, ANY});
                    const auto weight = weight_C.packed<const T>("weight_C", {ANY});
                    const int64_t num_tokens = x.shape[0], rotary_dim = x.shape[1] - weight.shape[0];
                    const auto cos = cos_TR.packed<const float>("cos_TR", {num_tokens, rotary_dim});
                    const auto sin = sin_TR.packed<const float>("sin_TR", cos.shape);
                    const auto latents = cache.view<decltype(cached)>("cache", {ANY, 1, ANY, x.shape[1]}, 2);
                    const auto slots = slot_mapping_T.packed<const int64_t>("slot_mapping_T", {num_tokens});
                    check_value(rotary_dim % 2 == 0, "the rotary dimension must be even");
                    launch(num_tokens, [=](int64_t rows) {
                        const int64_t* size = latents.values.shape;
                        check_indices(slots.data, rows, size[0] * size[2], "slot_mapping_T");
                        parallel_rows(rows, 8, [&](int64_t row) {
                            const int64_t slot = slots.data[row];
                            store_latent(x.row(row), weight.data, eps, cos.row(row), sin.row(row),
                                         latents.values.data + slot * size[3], latents.scales + 2 * slot,
                                         weight.shape[0], rotary_dim);
                        });
                    });
                });
            });
        },
        "x_TY"_a, "weight_C"_a, "eps"_a, "cos_TR"_a, "sin_TR"_a, "cache"_a, "slot_mapping_T"_a);
}
