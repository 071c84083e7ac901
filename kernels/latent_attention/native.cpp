// Attention over cached latents on a CPU. Contract: kernels/latent_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, with one key head whose values are the beginning of its keys.
#include "../native/binding.h"
#include "../paged_attention/plan.h"

#include <nanobind/stl/vector.h>

namespace {

using namespace native;

constexpr int64_t TOKENS = 8;  // of a chunk, in a task: each brings as many rows as there are heads
constexpr int64_t SPAN = 512;  // positions in a task, where there are few tokens; there is one key head only
static_assert(SPAN % TILE == 0);

// The scales, two a slot, are those of int8 caches: of the values and of the rest of the keys.
template <typename T, typename C>
void latent_attention(const View<const T, 3>& q, const CacheView<const C>& cache, const Plan& plan, float scale,
                      const View<T, 3>& out) {
    const int64_t block_size = cache.values.shape[2], dim = q.shape[2], value_dim = out.shape[2];
    const Attention<T, C> attention{
        {q.data, q.stride[0], q.stride[1], dim},
        {cache.values.data, block_size * dim, 0, dim, dim, cache.scales ? value_dim : dim, cache.scales, 2},
        {cache.values.data, block_size * dim, 0, dim, value_dim, value_dim, cache.scales, 2},
        out.data,
        plan.block_tables.data(),
        plan.table_stride,
        block_size,
        q.shape[1],
        1,
        scale,
        plan.span,
    };
    run(attention, plan);
}

}  // namespace

void native::bind_latent_attention(nb::module_& m) {
    m.def(
        "latent_attention_plan",
        [](const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens,
           const std::vector<std::vector<int32_t>>& block_tables, int64_t block_size) {
            return AttentionPlan{
                std::make_shared<Plan>(query_lens, context_lens, block_tables, block_size, TOKENS, SPAN)};
        },
        "query_lens"_a, "context_lens"_a, "block_tables"_a, "block_size"_a);
    m.def(
        "latent_attention",
        [](Tensor q_TNX, KVCache cache, std::shared_ptr<AttentionPlan> plan, float scale, Tensor out_TNC) {
            with_dtype(q_TNX, "q_TNX", [&](auto number) {
                using T = decltype(number);
                with_cache<T>(cache, [&](auto cached) {
                    using C = const decltype(cached);
                    const auto q = q_TNX.view<const T>("q_TNX", {ANY, ANY, ANY});
                    const auto latents = cache.view<C>("cache", {ANY, 1, ANY, q.shape[2]}, 2);
                    const auto out = out_TNC.packed<T>("out_TNC", {q.shape[0], q.shape[1], ANY});
                    check_value(out.shape[2] <= q.shape[2], "values must be a part of the keys");
                    launch(q.shape[0], [=](int64_t rows) {
                        plan->plan->check(rows, latents.values.shape[0], latents.values.shape[2]);
                        latent_attention<T, std::remove_const_t<C>>(q, latents, *plan->plan, scale, out);
                    });
                });
            });
        },
        "q_TNX"_a, "cache"_a, "plan"_a, "scale"_a, "out_TNC"_a);
}
