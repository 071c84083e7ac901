// Attention over cached latents on a CPU. Contract: kernels/latent_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, with one key head whose values are the beginning of its keys.
#include "../paged_attention/attention.h"

namespace {

constexpr int64_t TOKENS = 8;  // of a chunk, in a task: each brings as many rows as there are heads
constexpr int64_t SPAN = 512;  // positions in a task, where there are few tokens; there is one key head only
static_assert(SPAN % native::TILE == 0);

}  // namespace

void native::bind_latent_attention(nb::module_& m) {
    bind_planner(m, "latent_attention_plan", nullptr, TOKENS, SPAN);
    m.def(
        "latent_attention",
        [](Tensor q_TNX, KVCache cache, std::shared_ptr<AttentionPlan> plan, float scale, int64_t value_dim) {
            return with_dtypes(q_TNX, "q_TNX", cache, [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto q = q_TNX.view<const T>("q_TNX", {ANY, ANY, ANY});
                const auto latents = cache.view<const C>("cache", {ANY, 1, ANY, q.shape[2]}, 2);
                check_value(value_dim <= q.shape[2], "values must be a part of the keys");
                const auto out = q_TNX.make<T>({q.shape[0], q.shape[1], value_dim});
                launch(q.shape[0], [=, out = out.view](int64_t rows) {
                    const auto& [data, shape, stride] = latents.values;
                    const auto tasks = plan->plan;  // held, whatever is assigned meanwhile
                    tasks->check(rows, shape[0], shape[2]);
                    const int64_t first = latents.scales ? value_dim : shape[3];  // one scale, then the other
                    const Cache<C> keys{data, stride[0], 0, shape[3], shape[3], first, latents.scales, 2};
                    Cache<C> values = keys;
                    values.dim = values.first = value_dim;
                    run(Attention<T, C>{q, keys, values, out.data, 1, scale, *tasks});
                });
                return out.tensor;
            });
        },
        "q_TNX"_a, "cache"_a, "plan"_a, "scale"_a, "value_dim"_a);
}
