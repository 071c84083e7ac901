// What all layers of a step share: which tasks its attention has, and on which blocks.
#pragma once

#include "attention.h"

#include <memory>
#include <vector>

namespace native {

struct Plan {
    int64_t num_tokens, block_size, num_blocks;  // num_blocks: of the smallest cache that has all blocks
    int64_t span;                                // positions that are summed up by themselves (attention.h)
    int64_t table_stride;
    std::vector<int32_t> block_tables;  // [sequences, table_stride], the ends unused
    std::vector<Task> tasks;            // heaviest first
    std::vector<Merge> merges;
    int64_t num_partials;  // of all tasks

    // A chunk's tokens go to tasks in groups of `group`; no more than a group is cut by positions, into spans.
    Plan(const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens,
         const std::vector<std::vector<int32_t>>& tables, int64_t block_size, int64_t group, int64_t span);

    // ValueError, unless it is one for so many tokens and such a cache.
    void check(int64_t tokens, int64_t cache_blocks, int64_t cache_block_size) const;
};

// A plan as Python holds it. What a captured operation holds is another plan's by assignment.
struct AttentionPlan {
    std::shared_ptr<const Plan> plan;
};

template <typename T, typename C>
void run(const Attention<T, C>& attention, const Plan& plan) {
    static thread_local Scratch<float> partials;
    const int64_t size = attention.num_heads * (round_up(attention.values.dim, LANES) + LANES);
    run(attention, plan.tasks.data(), int64_t(plan.tasks.size()), plan.merges.data(), int64_t(plan.merges.size()),
        partials.room(plan.num_partials * size));
}

}  // namespace native
