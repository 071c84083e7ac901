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
            return with_dtypes(q_TND, "q_TND", k_cache, "k_cache", [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto q = q_TND.view<const T>("q_TND", {ANY, ANY, ANY});
                const int64_t dim = q.shape[2];
                const auto keys = k_cache.view<const C>("k_cache", {ANY, ANY, ANY, key_row<C>(dim)}, 1);
                const auto [num_blocks, num_kv_heads, block_size, _] = keys.values.shape;
                const auto values =
                    v_cache.view<const C>("v_cache", {num_blocks, num_kv_heads, block_size, value_row<C>(dim)}, 1);
                const auto out = q_TND.make<T>(q.shape);
                check_value(num_kv_heads && q.shape[1] % num_kv_heads == 0,
                            "query heads must be a multiple of key heads");
                const bool in_panels = lies_in_panels(block_size, dim);
                check_value(in_panels || !std::is_same_v<C, Packed>, "packed rows must lie in panels");
                launch(q.shape[0], [=, out = out.view](int64_t rows) {
                    const auto tasks = plan->plan;  // held, whatever is assigned meanwhile
                    tasks->check(rows, keys.values.shape[0], keys.values.shape[2]);
                    const auto of = [dim](const CacheView<const C>& cache) {
                        const auto& [data, shape, stride] = cache.values;
                        return Cache<C>{data, stride[0], stride[1], shape[3], dim, dim, cache.scales, 1};
                    };
                    run(Attention<T, C>{q, of(keys), of(values), out.data, keys.values.shape[1], scale, *tasks,
                                        in_panels});
                });
                return out.tensor;
            });
        },
        "q_TND"_a, "k_cache"_a, "v_cache"_a, "plan"_a, "scale"_a);
}
