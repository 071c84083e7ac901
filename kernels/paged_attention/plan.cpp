// Cutting a step's attention into tasks, each for one thread and key head.
//
// A decoding sequence, or a chunk of up to a group's tokens, that reads a long context is cut into spans of positions,
// whose results are merged; a longer chunk into groups of tokens. A task for many spans sums them up one by one in the
// same order, so it does not matter how a sequence is cut.
//
// Block-sparse attention is that of virtual sequences (virtual_sequences.py), which are made here as there. Of Python's
// lists only the blocks that are seen are read, so that a plan for each of many layers costs little.
#include "plan.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

namespace native {
namespace {

constexpr int64_t PARTIALS = 256;  // of a chunk at most: memory for tokens times spans
constexpr int64_t PACKING = 8;     // what a position costs beside its products, in tokens

// The block tables of a step as Python has them: lists of ids, each from some block number on.
class Tables {
 public:
    Tables(const nb::list& lists, const std::vector<int64_t>& first_blocks) : lists(lists), first_blocks(first_blocks) {
        check_value(first_blocks.empty() || first_blocks.size() == lists.size(),
                    "first_blocks must have a number for each block table");
    }

    size_t size() const { return lists.size(); }

    // Blocks `begin` to `end` of a sequence, to a plan.
    void add_blocks(size_t sequence, int64_t begin, int64_t end, Plan& plan) const {
        PyObject* const list = PyList_GET_ITEM(lists.ptr(), sequence);
        if (!PyList_Check(list)) throw nb::type_error("block_tables must be a list of lists");
        const int64_t first = first_blocks.empty() ? 0 : first_blocks[sequence];
        check_value(first <= begin, "a block table begins behind a block that is seen");
        check_value(end - first <= PyList_GET_SIZE(list), "a block table is shorter than its context");
        for (int64_t i = begin - first; i < end - first; ++i) {
            const int64_t id = PyLong_AsLongLong(PyList_GET_ITEM(list, i));
            if (id == -1 && PyErr_Occurred()) throw nb::python_error();
            plan.add_block(id);
        }
    }

 private:
    const nb::list& lists;
    const std::vector<int64_t>& first_blocks;
};

void check_lens(const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens, size_t num_tables) {
    check_value(query_lens.size() == context_lens.size() && query_lens.size() == num_tables,
                "query_lens, context_lens and block_tables must be of the same sequences");
    for (size_t i = 0; i < num_tables; ++i)
        check_value(0 < query_lens[i] && query_lens[i] <= context_lens[i] && context_lens[i] < ALL_POSITIONS,
                    "a sequence must have at least one query, and as many positions in its context");
}

// The sparse blocks that each query block sees (kernels.attention_pattern.VisibleBlocks), a row's end being -1.
typedef nb::ndarray<const int32_t, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu> VisibleBlocks;

// Adds the queries of one sparse block, with the blocks that they see.
void add_virtual_sequence(const Tables& tables, size_t sequence, int64_t own, int64_t queries, int64_t end,
                          int64_t sparse_size, const VisibleBlocks& visible, Plan& plan) {
    const int64_t ratio = sparse_size / plan.block_size, width = visible.shape(1);
    check_value(own < int64_t(visible.shape(0)), "visible_blocks has no row for a query");
    const int32_t* row = visible.data() + own * width;
    int64_t count = 0, last = -1;
    for (; count < width && row[count] >= 0; last = row[count++]) {
        check_value(last < row[count] && row[count] <= own, "visible blocks must ascend up to a query's own");
        const int64_t block = row[count] * ratio,
                      seen =
                          row[count] == own ? (end - own * sparse_size + plan.block_size - 1) / plan.block_size : ratio;
        tables.add_blocks(sequence, block, block + seen, plan);
    }
    check_value(count > 0, "a query must see a block");
    const bool their_own = last == own;
    plan.add_sequence(queries, count * sparse_size - (their_own ? (own + 1) * sparse_size - end : 0), 0, their_own);
}

}  // namespace

Plan::Plan(int64_t block_size, int64_t group, int64_t span, int64_t window)
    : block_size(block_size), span(span), window(window), group(group) {
    check_value(block_size > 0 && window > 0, "block_size and window must be positive");
}

void Plan::add_block(int64_t id) {
    check_value(0 <= id && id < ALL_POSITIONS, "a block table has a negative block");
    num_blocks = std::max(num_blocks, id + 1);
    block_ids.push_back(int32_t(id));
}

void Plan::add_sequence(int64_t queries, int64_t context, int64_t first_block, bool their_own) {
    const int64_t start = context - queries, first = their_own ? first_seen(start) : 0;
    const int64_t spans = (context - 1) / span - first / span + 1;
    const auto add = [&](int64_t token, int64_t count, int64_t begin, int64_t end, int64_t partial) {
        const int64_t position = their_own ? context - queries + token - num_tokens : context - 1;
        tasks.push_back({int32_t(sequences.size()), int32_t(token), int32_t(count), int32_t(position), int32_t(begin),
                         int32_t(end), int32_t(partial)});
    };
    if (context - first > span && (queries == 1 || queries <= std::min(group, PARTIALS / spans))) {
        for (int64_t i = 0; i < queries; ++i)
            merges.push_back({int32_t(num_tokens + i), int32_t(num_partials + i), int32_t(spans), int32_t(queries)});
        for (int64_t begin = first, end; begin < context; begin = end, num_partials += queries) {
            end = std::min(round_up(begin + 1, span), context);
            add(num_tokens, queries, begin, end, num_partials);
        }
    } else {
        for (int64_t i = 0; i < queries; i += group) {
            const int64_t count = std::min(group, queries - i);
            their_own ? add(num_tokens + i, count, first_seen(start + i), start + i + count, -1)
                      : add(num_tokens + i, count, 0, context, -1);
        }
    }
    sequences.push_back({int64_t(num_added), first_block, context});
    num_added = block_ids.size();
    num_tokens += queries;
}

void Plan::sort_tasks() {
    const auto cost = [](const Task& task) { return (task.num_tokens + PACKING) * (task.end - task.begin); };
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) { return cost(a) > cost(b); });
}

void Plan::check(int64_t tokens, int64_t cache_blocks, int64_t cache_block_size) const {
    check_value(tokens == num_tokens, "the plan is for another number of tokens");
    check_value(num_blocks <= cache_blocks && block_size == cache_block_size,
                "the plan is for a cache with more blocks, or blocks of another size");
}

void bind_plan(nb::module_& m) {
    nb::class_<AttentionPlan>(m, "AttentionPlan")
        .def(
            "assign", [](AttentionPlan& self, const AttentionPlan& other) { self.plan = other.plan; }, "other"_a)
        .def_prop_ro("is_capturable", [](const AttentionPlan&) { return true; });
}

typedef nb::typed<nb::list, nb::typed<nb::list, int>> Lists;

void bind_planner(nb::module_& m, const char* name, const char* sparse_name, int64_t group, int64_t span) {
    m.def(
        name,
        [=](const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens, const Lists& block_tables,
            int64_t block_size, const std::vector<int64_t>& first_blocks, std::optional<int64_t> window) {
            const Tables tables(block_tables, first_blocks);
            check_lens(query_lens, context_lens, tables.size());
            const auto plan = std::make_shared<Plan>(block_size, group, span, window.value_or(ALL_POSITIONS));
            for (size_t i = 0; i < tables.size(); ++i) {
                const int64_t first = plan->first_seen(context_lens[i] - query_lens[i]) / block_size;
                tables.add_blocks(i, first, (context_lens[i] + block_size - 1) / block_size, *plan);
                plan->add_sequence(query_lens[i], context_lens[i], first);
            }
            plan->sort_tasks();
            return AttentionPlan{plan};
        },
        "query_lens"_a, "context_lens"_a, "block_tables"_a, "block_size"_a, "first_blocks"_a = std::vector<int64_t>(),
        "window"_a = nb::none());
    if (!sparse_name) return;
    m.def(
        sparse_name,
        [=](const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens, const Lists& block_tables,
            int64_t block_size, const std::vector<int64_t>& first_blocks, int64_t sparse_block_size,
            const VisibleBlocks& visible_blocks) {
            const Tables tables(block_tables, first_blocks);
            check_lens(query_lens, context_lens, tables.size());
            const auto plan = std::make_shared<Plan>(block_size, group, span);
            check_value(sparse_block_size > 0 && sparse_block_size % block_size == 0,
                        "a sparse block must be made of whole blocks of the cache");
            for (size_t i = 0; i < tables.size(); ++i)
                for (int64_t position = context_lens[i] - query_lens[i], end; position < context_lens[i];
                     position = end) {
                    const int64_t own = position / sparse_block_size;
                    end = std::min((own + 1) * sparse_block_size, context_lens[i]);
                    add_virtual_sequence(tables, i, own, end - position, end, sparse_block_size, visible_blocks, *plan);
                }
            plan->sort_tasks();
            return AttentionPlan{plan};
        },
        "query_lens"_a, "context_lens"_a, "block_tables"_a, "block_size"_a, "first_blocks"_a, "sparse_block_size"_a,
        "visible_blocks"_a);
}

}  // namespace native
