// Paged attention on a CPU. Contract: kernels/paged_attention/__init__.py; the algorithm: attention.h.
#include "attention.h"

namespace {

constexpr int64_t TOKENS = 64;  // of a chunk, in a task
constexpr int64_t SPAN = 1024;  // positions in a task, where there are few tokens
static_assert(SPAN % native::TILE == 0);

}  // namespace

void native::bind_paged_attention(nb::module_& m) {
    bind_planner(m, "paged_attention_plan", "block_sparse_attention_plan", TOKENS, SPAN);
    m.def(
        "paged_attention",
        [](Tensor q_TND, KVCache k_cache, KVCache v_cache, std::shared_ptr<AttentionPlan> plan, float scale) {
            return with_dtypes(q_TND, "q_TND", k_cache, [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto q = q_TND.view<const T>("q_TND", {ANY, ANY, ANY});
                const auto keys = k_cache.view<const C>("k_cache", {ANY, ANY, ANY, q.shape[2]}, 1);
                const auto values = v_cache.view<const C>("v_cache", keys.values.shape, 1);
                const auto out = q_TND.make<T>(q.shape);
                const auto [num_blocks, num_kv_heads, block_size, dim] = keys.values.shape;
                check_value(num_kv_heads && q.shape[1] % num_kv_heads == 0,
                            "query heads must be a multiple of key heads");
                const bool in_panels = lies_in_panels(block_size, dim);
                launch(q.shape[0], [=, out = out.view](int64_t rows) {
                    const auto tasks = plan->plan;  // held, whatever is assigned meanwhile
                    tasks->check(rows, keys.values.shape[0], keys.values.shape[2]);
                    const auto of = [](const CacheView<const C>& cache) {
                        const auto& [data, shape, stride] = cache.values;
                        return Cache<C>{data, stride[0], stride[1], shape[3], shape[3], shape[3], cache.scales, 1};
                    };
                    run(Attention<T, C>{q, of(keys), of(values), out.data, keys.values.shape[1], scale, *tasks,
                                        in_panels});
                });
                return out.tensor;
            });
        },
        "q_TND"_a, "k_cache"_a, "v_cache"_a, "plan"_a, "scale"_a);
}
