// Attention over cached latents on a CPU. Contract: kernels/latent_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, with one key head whose values are the beginning of its keys.
#include "../paged_attention/plan.h"

namespace {

using namespace native;

// The scales, two a slot, are those of int8 caches: of the values and of the rest of the keys.
template <typename T, typename C>
int latent_attention(const T* q, const C* cache, const float* scales, T* out, const Plan* plan, int64_t num_heads,
                     int64_t block_size, int64_t dim, int64_t value_dim, float scale) {
    const Attention<T, C> attention{
        {q, num_heads * dim, dim, dim},
        {cache, block_size * dim, 0, dim, dim, scales ? value_dim : dim, scales, 2},
        {cache, block_size * dim, 0, dim, value_dim, value_dim, scales, 2},
        out,
        plan->block_tables,
        plan->table_stride,
        block_size,
        num_heads,
        1,
        scale,
        plan->span,
    };
    run(attention, *plan);
    return 0;
}

}  // namespace

#define DEFINE(NAME, T, C)                                                                                    \
    extern "C" int NAME(const T* q, const C* cache, const float* scales, T* out, const native::Plan* plan,    \
                        int64_t num_heads, int64_t block_size, int64_t dim, int64_t value_dim, float scale) { \
        return latent_attention(q, cache, scales, out, plan, num_heads, block_size, dim, value_dim, scale);   \
    }

DEFINE(latent_attention_bf16, native::bf16, native::bf16)
DEFINE(latent_attention_f32, float, float)
DEFINE(latent_attention_int8_bf16, native::bf16, int8_t)
DEFINE(latent_attention_int8_f32, float, int8_t)
