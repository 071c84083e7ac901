// What a call of the attention kernels is given, and the plan that all layers of a step share.
#pragma once

#include "../native/binding.h"
#include "../native/panels.h"
#include "../store_kv/packed.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

namespace native {

constexpr int64_t TILE = 256;  // positions computed at a time

struct Task {
    int32_t sequence;  // whose block table is read
    int32_t first_token, num_tokens;
    int32_t position;    // of the first token
    int32_t begin, end;  // positions to attend to; a token sees none behind its own, nor before its window
    int32_t partial;  // where an incomplete result of the first token goes, others after it; -1: results are complete
};

// A token's row of partial results, to be made one.
struct Merge {
    int32_t token, first_partial, num_partials, step;  // from one to the next
};

// A sequence's block table from block number `first` on; what lies before is not read.
struct BlockTable {
    const int32_t* ids;
    int64_t first;

    int32_t operator[](int64_t number) const { return ids[number - first]; }
};

constexpr int64_t ALL_POSITIONS = std::numeric_limits<int32_t>::max();

// Which tasks a step's attention has, and on which blocks.
class Plan {
 public:
    const int64_t block_size;
    const int64_t span;    // positions that are summed up by themselves (attention.h)
    const int64_t window;  // positions up to its own that a token sees at most
    std::vector<Task> tasks;
    std::vector<Merge> merges;
    int64_t num_tokens = 0, num_partials = 0;  // of all tasks
    int64_t num_blocks = 0;                    // of the smallest cache that has all blocks

    // A chunk's tokens go to tasks in groups of `group`; no more than a group is cut by positions, into spans.
    Plan(int64_t block_size, int64_t group, int64_t span, int64_t window = ALL_POSITIONS);

    // The first position that the token at a position sees.
    int64_t first_seen(int64_t position) const { return std::max<int64_t>(0, position - window + 1); }

    // The id of the next sequence's next block.
    void add_block(int64_t id);
    // The next sequence: its last `queries` positions are the next tokens, and the blocks added last, from number
    // `first_block` on, its table. Where tokens do not see `their_own` positions, all of them see the whole context.
    void add_sequence(int64_t queries, int64_t context, int64_t first_block, bool their_own = true);
    // The heaviest tasks first.
    void sort_tasks();

    // ValueError, unless it is one for so many tokens and such a cache.
    void check(int64_t tokens, int64_t cache_blocks, int64_t cache_block_size) const;

    BlockTable table(int64_t sequence) const {
        return {block_ids.data() + sequences[sequence].table, sequences[sequence].first_block};
    }
    BlockTable table(const Task& task) const { return table(task.sequence); }
    int64_t num_sequences() const { return sequences.size(); }
    int64_t context(int64_t sequence) const { return sequences[sequence].context; }

 private:
    struct Sequence {
        int64_t table, first_block, context;  // where the table begins in block_ids
    };

    const int64_t group;
    std::vector<int32_t> block_ids;
    std::vector<Sequence> sequences;
    size_t num_added = 0;  // of block_ids, those of earlier sequences
};

// A plan as Python holds it. What a captured operation holds is another plan's by assignment.
struct AttentionPlan {
    std::shared_ptr<const Plan> plan;
};

// Python's functions that make plans with such groups and spans: `name`, and `sparse_name` unless it is null.
void bind_planner(nb::module_& m, const char* name, const char* sparse_name, int64_t group, int64_t span);

// Rows of `dim` cached values: of the slots of blocks, for each key head. Those of fewer bits have scales: a row's
// values up to `first` are multiples of its first scale, the others of its last.
template <typename T>
struct Cache {
    const T* data;
    int64_t block_stride, head_stride, slot_stride, dim;
    int64_t first = dim;
    const Scale<T>* scales = nullptr;  // [blocks, key heads, slots, num_scales]
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
