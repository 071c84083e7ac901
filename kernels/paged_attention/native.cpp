// Paged attention on a CPU. Contract: kernels/paged_attention/__init__.py; the algorithm: attention.h.
#include "../native/binding.h"
#include "plan.h"

#include <nanobind/stl/vector.h>

namespace {

using namespace native;

constexpr int64_t TOKENS = 64;  // of a chunk, in a task
constexpr int64_t SPAN = 1024;  // positions in a task, where there are few tokens
static_assert(SPAN % TILE == 0);

template <typename T, typename C>
void paged_attention(const View<const T, 3>& q, const CacheView<const C>& k_cache, const CacheView<const C>& v_cache,
                     const Plan& plan, float scale, T* out) {
    const auto [num_blocks, num_kv_heads, block_size, dim] = k_cache.values.shape;
    const int64_t head_stride = block_size * dim, block_stride = num_kv_heads * head_stride;
    const Attention<T, C> attention{
        {q.data, q.stride[0], q.stride[1], dim},
        {k_cache.values.data, block_stride, head_stride, dim, dim, dim, k_cache.scales, 1},
        {v_cache.values.data, block_stride, head_stride, dim, dim, dim, v_cache.scales, 1},
        out,
        plan.block_tables.data(),
        plan.table_stride,
        block_size,
        q.shape[1],
        num_kv_heads,
        scale,
        plan.span,
        lies_in_panels(block_size, dim),
    };
    run(attention, plan);
}

}  // namespace

void native::bind_paged_attention(nb::module_& m) {
    m.def(
        "paged_attention_plan",
        [](const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens,
           const std::vector<std::vector<int32_t>>& block_tables, int64_t block_size) {
            return AttentionPlan{
                std::make_shared<Plan>(query_lens, context_lens, block_tables, block_size, TOKENS, SPAN)};
        },
        "query_lens"_a, "context_lens"_a, "block_tables"_a, "block_size"_a);
    m.def(
        "paged_attention",
        [](Tensor q_TND, KVCache k_cache, KVCache v_cache, std::shared_ptr<AttentionPlan> plan, float scale,
           Tensor out_TND) {
            with_dtype(q_TND, "q_TND", [&](auto number) {
                using T = decltype(number);
                with_cache<T>(k_cache, [&](auto cached) {
                    using C = const decltype(cached);
                    const auto q = q_TND.view<const T>("q_TND", {ANY, ANY, ANY});
                    const auto keys = k_cache.view<C>("k_cache", {ANY, ANY, ANY, q.shape[2]}, 1);
                    const auto values = v_cache.view<C>("v_cache", keys.values.shape, 1);
                    const auto out = out_TND.packed<T>("out_TND", q.shape);
                    check_value(keys.values.shape[1] && q.shape[1] % keys.values.shape[1] == 0,
                                "query heads must be a multiple of key heads");
                    launch(q.shape[0], [=](int64_t rows) {
                        plan->plan->check(rows, keys.values.shape[0], keys.values.shape[2]);
                        paged_attention<T, std::remove_const_t<C>>(q, keys, values, *plan->plan, scale, out.data);
                    });
                });
            });
        },
        "q_TND"_a, "k_cache"_a, "v_cache"_a, "plan"_a, "scale"_a, "out_TND"_a);
}
