// Attention over cached latents on a CPU. Contract: kernels/latent_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, with one key head whose values are the beginning of its keys.
#include "../paged_attention/attention.h"

namespace {

constexpr int64_t TOKENS = 8;  // of a chunk, in a task: each brings as many rows as there are heads
constexpr int64_t SPAN = 512;  // positions in a task, where there are few tokens; there is one key head only
static_assert(SPAN % native::TILE == 0);

using namespace native;

// The plan of attention over some positions of each decoding sequence of another plan: a selected position is a block
// of one slot, and the selected ones are a sequence's whole context. Those behind a sequence's end are none.
Plan select(const Plan& whole, const View<const int64_t, 2>& positions) {
    check_value(whole.num_sequences() == whole.num_tokens, "positions are selected for decoding sequences only");
    Plan plan(1, TOKENS, SPAN);
    for (int64_t sequence = 0; sequence < positions.shape[0]; ++sequence) {
        const BlockTable table = whole.table(sequence);
        int64_t count = 0;
        for (int64_t i = 0; i < positions.shape[1]; ++i) {
            const int64_t position = positions.row(sequence)[i];
            if (position >= whole.context(sequence)) continue;
            check_value(position >= 0, "a selected position is negative");
            plan.add_block(table[position / whole.block_size] * whole.block_size + position % whole.block_size);
            ++count;
        }
        check_value(count > 0, "a query must select a position");
        plan.add_sequence(1, count, 0);
    }
    plan.sort_tasks();
    return plan;
}

}  // namespace

void native::bind_latent_attention(nb::module_& m) {
    bind_planner(m, "latent_attention_plan", nullptr, TOKENS, SPAN);
    m.def(
        "latent_attention",
        [](Tensor q_TNX, KVCache cache, std::shared_ptr<AttentionPlan> plan, float scale, int64_t value_dim) {
            return with_dtypes(q_TNX, "q_TNX", cache, "cache", [&](auto number, auto cached) {
                using T = decltype(number);
                using C = decltype(cached);
                const auto q = q_TNX.view<const T>("q_TNX", {ANY, ANY, ANY});
                const int64_t dim = q.shape[2];
                check_value(value_dim <= dim, "values must be a part of the keys");
                check_value(value_dim % 32 == 0 || !std::is_same_v<C, Packed>, "packed latents have a multiple of 32");
                const int64_t row = latent_row<C>(value_dim, dim - value_dim);
                const auto latents = cache.view<const C>("cache", {ANY, 1, ANY, row}, 2);
                const auto out = q_TNX.make<T>({q.shape[0], q.shape[1], value_dim});
                launch(q.shape[0], [=, out = out.view](int64_t rows) {
                    const auto& [data, shape, stride] = latents.values;
                    const auto tasks = plan->plan;  // held, whatever is assigned meanwhile
                    tasks->check(rows, shape[0], shape[2]);
                    const int64_t first = latents.scales ? value_dim : dim;  // one scale, then the other
                    const Cache<C> keys{data, stride[0], 0, shape[3], dim, first, latents.scales, 2};
                    Cache<C> values = keys;
                    values.dim = values.first = value_dim;
                    run(Attention<T, C>{q, keys, values, out.data, 1, scale, *tasks});
                });
                return out.tensor;
            });
        },
        "q_TNX"_a, "cache"_a, "plan"_a, "scale"_a, "value_dim"_a);
    m.def(
        "sparse_latent_attention",
        [](Tensor q_TNX, Tensor cache, std::shared_ptr<AttentionPlan> plan, Tensor positions_TP, float scale,
           int64_t value_dim) {
            return with_dtype(q_TNX, "q_TNX", [&](auto number) {
                using T = decltype(number);
                const auto q = q_TNX.view<const T>("q_TNX", {ANY, ANY, ANY});
                const auto latents = cache.packed<const T>("cache", {ANY, 1, ANY, q.shape[2]});
                const auto positions = positions_TP.packed<const int64_t>("positions_TP", {q.shape[0], ANY});
                check_value(value_dim <= q.shape[2], "values must be a part of the keys");
                const auto out = q_TNX.make<T>({q.shape[0], q.shape[1], value_dim});
                launch_uncaptured("sparse_latent_attention", [=, out = out.view] {
                    const auto whole = plan->plan;
                    whole->check(q.shape[0], latents.shape[0], latents.shape[2]);
                    const Plan selected = select(*whole, positions);
                    const int64_t size = latents.shape[3];
                    const Cache<T> keys{latents.data, size, 0, size, size};
                    Cache<T> values = keys;
                    values.dim = values.first = value_dim;
                    run(Attention<T>{q, keys, values, out.data, 1, scale, selected});
                });
                return out.tensor;
            });
        },
        "q_TNX"_a, "cache"_a, "plan"_a, "positions_TP"_a, "scale"_a, "value_dim"_a);
}
