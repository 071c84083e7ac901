// store_latents, a token at a time. Contract: kernels/store_latents/__init__.py.
#include "../native/binding.h"
#include "../native/memory.h"
#include "../native/pool.h"
#include "../rotary/rotary.h"
#include "../store_kv/write.h"

#include <cmath>

namespace {

using namespace native;

// One token's row of latent_dim + rotary_dim values; scales: the slot's two.
template <typename T, typename C>
void store_latent(const T* x, const T* weight, float eps, const float* cos, const float* sin, C* to, Scale<C>* scales,
                  int64_t latent_dim, int64_t rotary_dim) {
    T* latent = reinterpret_cast<T*>(
        scratch(round_up(latent_dim + rotary_dim, LANES) * sizeof(T) + 2 * latent_dim * sizeof(float)));
    v16 squares{};
    for (int64_t i = 0; i < latent_dim; i += LANES) {
        const v16 value = load_from(x, i, latent_dim);
        squares += value * value;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / float(latent_dim) + eps);
    for (int64_t i = 0; i < latent_dim; i += LANES)
        store_to(latent, i, latent_dim, load_from(x, i, latent_dim) * scale * load_from(weight, i, latent_dim));
    rotate(x + latent_dim, cos, sin, latent + latent_dim, rotary_dim);
    if constexpr (std::is_same_v<C, Packed>) {
        float* const memory = reinterpret_cast<float*>(latent + round_up(latent_dim + rotary_dim, LANES));
        write_codes(encode_row(latent, latent_dim, encode4, memory, scales), latent_dim, to);
        write(latent + latent_dim, rotary_dim, reinterpret_cast<int8_t*>(to + value_row<C>(latent_dim)), scales + 1);
    } else {
        write(latent, latent_dim, to, scales);
        write(latent + latent_dim, rotary_dim, to + latent_dim, scales + 1);
    }
}

}  // namespace

void native::bind_store_latents(nb::module_& m) {
    m.def(
        "store_latents",
        [](Tensor x_TY, Tensor weight_C, float eps, Tensor cos_TR, Tensor sin_TR, KVCache cache,
           Tensor slot_mapping_T) {
            with_dtypes(x_TY, "x_TY", cache, "cache", [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto x = x_TY.view<const T>("x_TY", {ANY, ANY});
                const auto weight = weight_C.packed<const T>("weight_C", {ANY});
                const int64_t num_tokens = x.shape[0], rotary_dim = x.shape[1] - weight.shape[0];
                const auto cos = cos_TR.packed<const float>("cos_TR", {num_tokens, rotary_dim});
                const auto sin = sin_TR.packed<const float>("sin_TR", cos.shape);
                const int64_t latent_dim = weight.shape[0];
                check_value(latent_dim % 32 == 0 || !std::is_same_v<C, Packed>, "packed latents have a multiple of 32");
                const auto latents = cache.view<C>("cache", {ANY, 1, ANY, latent_row<C>(latent_dim, rotary_dim)}, 2);
                const auto slots = slot_mapping_T.packed<const int64_t>("slot_mapping_T", {num_tokens});
                check_value(rotary_dim % 2 == 0, "the rotary dimension must be even");
                launch(num_tokens, [=](int64_t rows) {
                    const int64_t* size = latents.values.shape;
                    check_indices(slots.data, rows, size[0] * size[2], "slot_mapping_T");
                    parallel_rows(rows, 8, [&](int64_t row) {
                        const int64_t slot = slots.data[row];
                        store_latent(x.row(row), weight.data, eps, cos.row(row), sin.row(row),
                                     latents.values.data + slot * size[3], latents.scales + 2 * slot, weight.shape[0],
                                     rotary_dim);
                    });
                });
            });
        },
        "x_TY"_a, "weight_C"_a, "eps"_a, "cos_TR"_a, "sin_TR"_a, "cache"_a, "slot_mapping_T"_a);
}
