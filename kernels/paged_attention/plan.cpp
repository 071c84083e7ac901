// Cutting a step's attention into tasks, each for one thread and key head.
//
// A decoding sequence, or a chunk of up to a group's tokens, that reads a long context is cut into spans of positions,
// whose results are merged; a longer chunk into groups of tokens. A task for many spans sums them up one by one in the
// same order, so it does not matter how a sequence is cut.
#include "plan.h"

#include <nanobind/stl/vector.h>

#include <algorithm>

namespace native {
namespace {

constexpr int64_t PARTIALS = 256;  // of a chunk at most: memory for tokens times spans
constexpr int64_t PACKING = 8;     // what a position costs beside its products, in tokens

}  // namespace

Plan::Plan(const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens,
           const std::vector<std::vector<int32_t>>& tables, int64_t block_size, int64_t group, int64_t span)
    : num_tokens(0), block_size(block_size), num_blocks(0), span(span), table_stride(0), num_partials(0) {
    check_value(block_size > 0 && query_lens.size() == context_lens.size() && query_lens.size() == tables.size(),
                "query_lens, context_lens and block_tables must be of the same sequences, and block_size positive");
    const auto used = [&](size_t seq) { return (context_lens[seq] + block_size - 1) / block_size; };
    for (size_t seq = 0; seq < tables.size(); ++seq) {
        check_value(0 < query_lens[seq] && query_lens[seq] <= context_lens[seq],
                    "a sequence must have at least one query, and as many positions in its context");
        check_value(used(seq) <= int64_t(tables[seq].size()), "a block table is shorter than its context");
        table_stride = std::max(table_stride, used(seq));
    }
    block_tables.assign(tables.size() * table_stride, 0);
    for (size_t seq = 0; seq < tables.size(); ++seq) {
        for (int64_t i = 0; i < used(seq); ++i) {
            const int32_t block = tables[seq][i];
            check_value(block >= 0, "a block table has a negative block");
            num_blocks = std::max<int64_t>(num_blocks, block + 1);
            block_tables[seq * table_stride + i] = block;
        }
        const int64_t queries = query_lens[seq], context = context_lens[seq], start = context - queries;
        const int64_t spans = (context + span - 1) / span;
        const auto add = [&](int64_t token, int64_t count, int64_t position, int64_t begin, int64_t end,
                             int64_t partial) {
            tasks.push_back({int32_t(seq), int32_t(token), int32_t(count), int32_t(position), int32_t(begin),
                             int32_t(end), int32_t(partial)});
        };
        if (spans > 1 && (queries == 1 || queries <= std::min(group, PARTIALS / spans))) {
            for (int64_t i = 0; i < queries; ++i)
                merges.push_back(
                    {int32_t(num_tokens + i), int32_t(num_partials + i), int32_t(spans), int32_t(queries)});
            for (int64_t begin = 0; begin < context; begin += span, num_partials += queries)
                add(num_tokens, queries, start, begin, std::min(begin + span, context), num_partials);
        } else {
            for (int64_t i = 0; i < queries; i += group) {
                const int64_t count = std::min(group, queries - i);
                add(num_tokens + i, count, start + i, 0, start + i + count, -1);
            }
        }
        num_tokens += queries;
    }
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

void bind_planner(nb::module_& m, const char* name, int64_t group, int64_t span) {
    m.def(
        name,
        [=](const std::vector<int64_t>& query_lens, const std::vector<int64_t>& context_lens,
            const std::vector<std::vector<int32_t>>& block_tables, int64_t block_size) {
            return AttentionPlan{
                std::make_shared<Plan>(query_lens, context_lens, block_tables, block_size, group, span)};
        },
        "query_lens"_a, "context_lens"_a, "block_tables"_a, "block_size"_a);
}

}  // namespace native
