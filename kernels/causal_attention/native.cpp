// Causal attention on a CPU. Contract: kernels/causal_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, over one block that holds all positions.
#include "../paged_attention/attention.h"

void native::bind_causal_attention(nb::module_& m) {
    m.def(
        "causal_attention",
        [](Tensor q_QNX, Tensor k_LNX, Tensor v_LNV, float scale) {
            return with_dtype(q_QNX, "q_QNX", [&](auto number) {
                using T = decltype(number);
                const auto q = q_QNX.view<const T>("q_QNX", {ANY, ANY, ANY});
                const auto k = k_LNX.view<const T>("k_LNX", {ANY, q.shape[1], q.shape[2]});
                const auto v = v_LNV.view<const T>("v_LNV", {k.shape[0], q.shape[1], ANY});
                const auto out = q_QNX.make<T>({q.shape[0], q.shape[1], v.shape[2]});
                check_value(q.shape[0] <= k.shape[0], "there must be a key for each query");
                launch_uncaptured("causal_attention", [=, out = out.view] {
                    if (!q.shape[0]) return;
                    Plan plan(k.shape[0], 128, k.shape[0]);
                    plan.add_block(0);
                    plan.add_sequence(q.shape[0], k.shape[0], 0);
                    plan.sort_tasks();
                    const auto cache = [](const View<const T, 3>& of) {
                        return Cache<T>{of.data, 0, of.stride[1], of.stride[0], of.shape[2]};
                    };
                    run(Attention<T>{q, cache(k), cache(v), out.data, q.shape[1], scale, plan});
                });
                return out.tensor;
            });
        },
        "q_QNX"_a, "k_LNX"_a, "v_LNV"_a, "scale"_a);
}
