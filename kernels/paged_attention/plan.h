// What all layers of a step share, as kernels/paged_attention/native.py makes it: which tasks there are, and on which
// blocks.
#pragma once

#include "attention.h"

namespace native {

struct Plan {
    const int32_t* block_tables;  // [sequences, table_stride]
    int64_t table_stride;
    const Task* tasks;
    int64_t num_tasks;
    const Merge* merges;
    int64_t num_merges;
    int64_t num_partials;
    int64_t span;  // positions
};

template <typename T, typename C>
void run(const Attention<T, C>& attention, const Plan& plan) {
    static thread_local Scratch<float> partials;
    const int64_t size = attention.num_heads * (round_up(attention.values.dim, LANES) + LANES);
    run(attention, plan.tasks, plan.num_tasks, plan.merges, plan.num_merges, partials.room(plan.num_partials * size));
}

}  // namespace native
