// Paged attention on a CPU. Contract: kernels/paged_attention/__init__.py; the algorithm: attention.h.
#include "plan.h"

namespace {

using namespace native;

// The scales of keys and values, one a slot and head, are those of int8 caches.
template <typename T, typename C>
int paged_attention(const T* q, int64_t q_stride, const C* k_cache, const C* v_cache, const float* k_scales,
                    const float* v_scales, T* out, const Plan* plan, int64_t num_heads, int64_t num_kv_heads,
                    int64_t block_size, int64_t dim, float scale) {
    const int64_t head_stride = block_size * dim, block_stride = num_kv_heads * head_stride;
    const Attention<T, C> attention{
        {q, q_stride, dim, dim},
        {k_cache, block_stride, head_stride, dim, dim, dim, k_scales, 1},
        {v_cache, block_stride, head_stride, dim, dim, dim, v_scales, 1},
        out,
        plan->block_tables,
        plan->table_stride,
        block_size,
        num_heads,
        num_kv_heads,
        scale,
        plan->span,
        lies_in_panels(block_size, dim),
    };
    run(attention, *plan);
    return 0;
}

}  // namespace

#define DEFINE(NAME, T, C)                                                                                            \
    extern "C" int NAME(const T* q, int64_t q_stride, const C* k_cache, const C* v_cache, const float* k_scales,      \
                        const float* v_scales, T* out, const native::Plan* plan, int64_t num_heads,                   \
                        int64_t num_kv_heads, int64_t block_size, int64_t dim, float scale) {                         \
        return paged_attention(q, q_stride, k_cache, v_cache, k_scales, v_scales, out, plan, num_heads, num_kv_heads, \
                               block_size, dim, scale);                                                               \
    }

DEFINE(paged_attention_bf16, native::bf16, native::bf16)
DEFINE(paged_attention_f32, float, float)
DEFINE(paged_attention_int8_bf16, native::bf16, int8_t)
DEFINE(paged_attention_int8_f32, float, int8_t)
