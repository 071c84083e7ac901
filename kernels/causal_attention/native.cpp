// Causal attention on a CPU. Contract: kernels/causal_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, over one block that holds all positions.
#include "../native/binding.h"
#include "../paged_attention/attention.h"

#include <vector>

namespace {

using namespace native;

constexpr int64_t TOKENS = 128;  // in a task

// Strides are those of positions, then of heads.
template <typename T>
void causal_attention(const T* q, int64_t q_token, int64_t q_head, const T* k, int64_t k_slot, int64_t k_head,
                      const T* v, int64_t v_slot, int64_t v_head, T* out, int64_t num_queries, int64_t context_len,
                      int64_t num_heads, int64_t dim, int64_t value_dim, float scale) {
    const int32_t table = 0;
    const Attention<T> attention{
        {q, q_token, q_head, dim},
        {k, 0, k_head, k_slot, dim, dim},
        {v, 0, v_head, v_slot, value_dim, value_dim},
        out,
        &table,
        0,
        context_len,
        num_heads,
        num_heads,
        scale,
        context_len,
    };
    std::vector<Task> tasks;
    for (int64_t last = num_queries; last > 0; last -= TOKENS) {  // those that see the most come first
        const int64_t first = std::max<int64_t>(0, last - TOKENS), position = context_len - num_queries + first;
        tasks.push_back(
            {0, int32_t(first), int32_t(last - first), int32_t(position), 0, int32_t(position + last - first), -1});
    }
    run(attention, tasks.data(), int64_t(tasks.size()), nullptr, 0, nullptr);
}

}  // namespace

void native::bind_causal_attention(nb::module_& m) {
    m.def(
        "causal_attention",
        [](Tensor q_QNX, Tensor k_LNX, Tensor v_LNV, float scale, Tensor out_QNV) {
            with_dtype(q_QNX, "q_QNX", [&](auto number) {
                using T = decltype(number);
                const auto q = q_QNX.view<const T>("q_QNX", {ANY, ANY, ANY});
                const auto k = k_LNX.view<const T>("k_LNX", {ANY, q.shape[1], q.shape[2]});
                const auto v = v_LNV.view<const T>("v_LNV", {k.shape[0], q.shape[1], ANY});
                const auto out = out_QNV.packed<T>("out_QNV", {q.shape[0], q.shape[1], v.shape[2]});
                check_value(q.shape[0] <= k.shape[0], "there must be a key for each query");
                launch_uncaptured("causal_attention", [=] {
                    causal_attention(q.data, q.stride[0], q.stride[1], k.data, k.stride[0], k.stride[1], v.data,
                                     v.stride[0], v.stride[1], out.data, q.shape[0], k.shape[0], q.shape[1], q.shape[2],
                                     v.shape[2], scale);
                });
            });
        },
        "q_QNX"_a, "k_LNX"_a, "v_LNV"_a, "scale"_a, "out_QNV"_a);
}
