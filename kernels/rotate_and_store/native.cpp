// rotate_and_store, one pass over the tokens. Contract: kernels/rotate_and_store/__init__.py.
#include "../native/binding.h"
#include "../paged_attention/packed_panels.h"
#include "../rotary/rotary.h"
#include "../store_kv/write.h"

namespace {

using namespace native;

// qkv: [rows, N + 2 K, D]; q: [rows, N, D].
template <typename T, typename C>
void rotate_and_store(const View<const T, 3>& qkv, const float* cos, const float* sin, const CacheView<C>& keys,
                      const CacheView<C>& values, const int64_t* slot_mapping, const View<T, 3>& q, int64_t num_rows) {
    const int64_t num_heads = q.shape[1], num_kv_heads = keys.values.shape[1], block_size = keys.values.shape[2],
                  dim = q.shape[2];
    const int64_t key_size = keys.values.shape[3], value_size = values.values.shape[3];
    C *const k_cache = keys.values.data, *const v_cache = values.values.data;
    Scale<C>*const k_scales = keys.scales, *const v_scales = values.scales;
    const bool panels = lies_in_panels(block_size, dim);
    const bool spreads = std::is_same_v<C, int8_t> && can_rotate_packed(dim);
    const auto place = [&](int64_t row, int64_t head) {
        const int64_t block = slot_mapping[row] / block_size, offset = slot_mapping[row] % block_size;
        return (block * num_kv_heads + head) * block_size + offset;
    };
    // A prompt's rows go to the same lines, CHUNK by CHUNK: a span of fewer would share them with another thread's.
    parallel_spans(num_rows, num_rows < 2 * CHUNK ? 8 : CHUNK, [&](int64_t begin, int64_t end) {
        float* const memory = reinterpret_cast<float*>(scratch(dim * (2 * sizeof(float) + sizeof(T) + sizeof(C))));
        T* const key = reinterpret_cast<T*>(memory + 2 * dim);
        C* const made = reinterpret_cast<C*>(key + dim);
        const auto as_cached = [&](const auto* x, Scale<C>* scale) -> const C* {
            if constexpr (!std::is_same_v<C, int8_t>) return reinterpret_cast<const C*>(x);
            if constexpr (std::is_same_v<C, int8_t>) write(x, dim, made, scale);
            return made;
        };
        const auto store_pair = [&](const auto* own_key, const T* value, int64_t slot) {
            const int64_t own = slot % CHUNK, chunk = slot - own;
            if (panels) {
                scatter_key<PAIR<T>>(as_cached(own_key, k_scales + slot), dim, own, k_cache + chunk * key_size);
                scatter_value<PAIR<T>>(as_cached(value, v_scales + slot), dim, own, v_cache + chunk * value_size);
            } else if constexpr (!std::is_same_v<C, Packed>) {
                write(own_key, dim, k_cache + slot * dim, k_scales + slot);
                write(value, dim, v_cache + slot * dim, v_scales + slot);
            }
        };
        for (int64_t row = begin; row < end; ++row) {
            const T* x = qkv.data + row * qkv.stride[0];
            const float *c = cos + row * dim, *s = sin + row * dim;
            const auto spread = [&] {
                rotate(x, c, s, memory, dim);
                rotate_packed(memory, dim);
                return memory;
            };
            for (int64_t head = 0; head < num_heads; ++head, x += dim) {
                T* const to = q.data + (row * num_heads + head) * dim;
                if (spreads) {
                    const float* from = spread();
                    for (int64_t i = 0; i < dim; i += LANES) store(to + i, load(from + i));
                } else {
                    rotate(x, c, s, to, dim);
                }
            }
            for (int64_t head = 0; head < num_kv_heads; ++head, x += dim) {
                const T* value = x + num_kv_heads * dim;
                const int64_t slot = place(row, head);
                if constexpr (std::is_same_v<C, Packed>) {
                    const int64_t own = slot % CHUNK, chunk = slot - own;
                    rotate(x, c, s, key, dim);
                    const uint8_t* codes = encode_row(key, dim, encode5, memory, k_scales + slot);
                    scatter_key_codes<PAIR<T>>(codes, dim, own, k_cache + chunk * key_size);
                    codes = encode_row(value, dim, encode4, memory, v_scales + slot);
                    scatter_value_codes<PAIR<T>>(codes, dim, own, v_cache + chunk * value_size);
                } else if (spreads) {
                    if constexpr (std::is_same_v<C, int8_t>) store_pair(spread(), value, slot);
                } else {
                    rotate(x, c, s, key, dim);
                    store_pair(key, value, slot);
                }
            }
        }
    });
}

}  // namespace

void native::bind_rotate_and_store(nb::module_& m) {
    m.def(
        "rotate_and_store",
        [](Tensor qkv_TXD, Tensor cos_TD, Tensor sin_TD, KVCache k_cache, KVCache v_cache, Tensor slot_mapping_T) {
            return with_dtypes(qkv_TXD, "qkv_TXD", k_cache, "k_cache", [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto qkv = qkv_TXD.view<const T>("qkv_TXD", {ANY, ANY, ANY});
                const int64_t num_tokens = qkv.shape[0], dim = qkv.shape[2];
                const auto keys = k_cache.view<C>("k_cache", {ANY, ANY, ANY, key_row<C>(dim)}, 1);
                const auto [num_blocks, num_kv_heads, block_size, _] = keys.values.shape;
                const auto values =
                    v_cache.view<C>("v_cache", {num_blocks, num_kv_heads, block_size, value_row<C>(dim)}, 1);
                check_value(lies_in_panels(block_size, dim) || !std::is_same_v<C, Packed>,
                            "packed rows must lie in panels");
                const int64_t num_heads = qkv.shape[1] - 2 * num_kv_heads;
                check_value(num_heads >= 0, "qkv_TXD must have all the keys and values that the caches take");
                const auto cos = cos_TD.packed<const float>("cos_TD", {num_tokens, dim});
                const auto sin = sin_TD.packed<const float>("sin_TD", cos.shape);
                const auto slots = slot_mapping_T.packed<const int64_t>("slot_mapping_T", {num_tokens});
                check_value(qkv.stride[1] == dim && dim % 2 == 0, "heads must lie side by side, and be even");
                const auto q = qkv_TXD.make<T>({num_tokens, num_heads, dim});
                launch(num_tokens, [=, q = q.view, num_slots = num_blocks * block_size](int64_t rows) {
                    check_indices(slots.data, rows, num_slots, "slot_mapping_T");
                    rotate_and_store(qkv, cos.data, sin.data, keys, values, slots.data, q, rows);
                });
                return q.tensor;
            });
        },
        "qkv_TXD"_a, "cos_TD"_a, "sin_TD"_a, "k_cache"_a, "v_cache"_a, "slot_mapping_T"_a);
}
