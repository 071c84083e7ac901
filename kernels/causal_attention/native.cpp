// Causal attention on a CPU. Contract: kernels/causal_attention/__init__.py; the algorithm:
// ../paged_attention/attention.h, over one block that holds all positions.
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

#define DEFINE(NAME, T)                                                                                                \
    extern "C" void NAME(const T* q, int64_t q_token, int64_t q_head, const T* k, int64_t k_slot, int64_t k_head,      \
                         const T* v, int64_t v_slot, int64_t v_head, T* out, int64_t num_queries, int64_t context_len, \
                         int64_t num_heads, int64_t dim, int64_t value_dim, float scale) {                             \
        causal_attention(q, q_token, q_head, k, k_slot, k_head, v, v_slot, v_head, out, num_queries, context_len,      \
                         num_heads, dim, value_dim, scale);                                                            \
    }

DEFINE(causal_attention_bf16, native::bf16)
DEFINE(causal_attention_f32, float)
