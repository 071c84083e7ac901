// What a call of the attention kernels is given, and the plan that all layers of a step share.
#pragma once

#include "../native/binding.h"
#include "../native/panels.h"

#include <memory>
#include <vector>

namespace native {

constexpr int64_t TILE = 256;  // positions computed at a time

struct Task {
    int32_t sequence;  // row of the block tables
    int32_t first_token, num_tokens;
    int32_t position;    // of the first token
    int32_t begin, end;  // positions to attend to; a token sees none behind its own
    int32_t partial;  // where an incomplete result of the first token goes, others after it; -1: results are complete
};

// A token's row of partial results, to be made one.
struct Merge {
    int32_t token, first_partial, num_partials, step;  // from one to the next
};

// Which tasks a step's attention has, and on which blocks.
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

    const int32_t* table(const Task& task) const { return block_tables.data() + task.sequence * table_stride; }
};

// A plan as Python holds it. What a captured operation holds is another plan's by assignment.
struct AttentionPlan {
    std::shared_ptr<const Plan> plan;
};

// The function of Python that makes plans with such groups and spans.
void bind_planner(nb::module_& m, const char* name, int64_t group, int64_t span);

// Rows of `dim` cached values: of the slots of blocks, for each key head. Those of int8 have scales: a row's values up
// to `first` are multiples of its first scale, the others of its last.
template <typename T>
struct Cache {
    const T* data;
    int64_t block_stride, head_stride, slot_stride, dim;
    int64_t first = dim;
    const float* scales = nullptr;  // [blocks, key heads, slots, num_scales]
    int64_t num_scales = 0;
};

template <typename T, typename C = T>
struct Attention {
    View<const T, 3> q;  // [tokens, num_heads, keys.dim]
    Cache<C> keys, values;
    T* out;  // [tokens, num_heads, values.dim]
    int64_t num_kv_heads;
    float scale;
    const Plan& plan;
    bool in_panels = false;  // how keys and values lie (layout.h)
    int64_t num_heads = q.shape[1], block_size = plan.block_size;
};

}  // namespace native
