// route, a token at a time. Contract: kernels/routing/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

#include <nanobind/stl/pair.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace {

using namespace native;

struct Rule {
    int64_t num_experts, experts_per_tok;
    bool is_sigmoid;
    int64_t n_group, topk_group, best_of_group;
    bool renormalises;
    float scale;
};

// Indices of `values`, those of the `count` largest first; of equal ones the first.
void order_by_size(const std::vector<float>& values, int64_t count, std::vector<int64_t>& order) {
    order.resize(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](int64_t a, int64_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
}

void score(const float* logits, const Rule& rule, float* scores) {
    const int64_t size = rule.num_experts;
    if (rule.is_sigmoid) {
        for (int64_t i = 0; i < size; i += LANES) {
            const v16 x = load_from(logits, i, size), power = exp(x < 0.0f ? x : -x);
            store_to(scores, i, size, (x < 0.0f ? power : splat(1.0f)) / (power + 1.0f));
        }
        return;
    }
    const float top = *std::max_element(logits, logits + size);
    float total = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        store_to(scores, i, size, exp(load_from(logits, i, size) - top));
        for (int64_t j = i; j < std::min(i + LANES, size); ++j) total += scores[j];
    }
    for (int64_t i = 0; i < size; ++i) scores[i] /= total;
}

void route(const float* logits, const float* bias, const Rule& rule, int64_t* ids, float* weights) {
    static thread_local std::vector<float> scores, choice, groups;
    static thread_local std::vector<int64_t> order;
    constexpr float NOTHING = -std::numeric_limits<float>::infinity();
    scores.resize(rule.num_experts);
    choice.resize(rule.num_experts);
    score(logits, rule, scores.data());
    for (int64_t i = 0; i < rule.num_experts; ++i) {
        choice[i] = bias ? scores[i] + bias[i] : scores[i];
        if (choice[i] != choice[i]) choice[i] = NOTHING;  // NaN has no place in an order
    }
    if (rule.topk_group < rule.n_group) {
        const int64_t size = rule.num_experts / rule.n_group;
        groups.resize(rule.n_group);
        for (int64_t g = 0; g < rule.n_group; ++g) {
            const std::vector<float> own(choice.begin() + g * size, choice.begin() + (g + 1) * size);
            order_by_size(own, rule.best_of_group, order);
            groups[g] = 0;
            for (int64_t i = 0; i < rule.best_of_group; ++i) groups[g] += own[order[i]];
        }
        order_by_size(groups, rule.topk_group, order);
        for (int64_t i = rule.topk_group; i < rule.n_group; ++i)
            std::fill_n(choice.begin() + order[i] * size, size, NOTHING);
    }
    order_by_size(choice, rule.experts_per_tok, order);
    float total = 1e-20f;
    for (int64_t k = 0; k < rule.experts_per_tok; ++k) total += scores[order[k]];
    const float factor = rule.renormalises ? rule.scale / total : rule.scale;
    for (int64_t k = 0; k < rule.experts_per_tok; ++k) {
        ids[k] = order[k];
        weights[k] = scores[order[k]] * factor;
    }
}

}  // namespace

void native::bind_routing(nb::module_& m) {
    m.def(
        "routing",
        [](Tensor logits_TE, std::optional<Tensor> bias_E, int64_t num_experts_per_tok, bool is_sigmoid,
           int64_t n_group, int64_t topk_group, int64_t best_of_group, bool renormalises, float scale) {
            const auto logits = logits_TE.packed<const float>("logits_TE", {ANY, ANY});
            const int64_t num_experts = logits.shape[1];
            const float* bias = bias_E ? bias_E->packed<const float>("bias_E", {num_experts}).data : nullptr;
            check_value(n_group > 0 && num_experts % n_group == 0 && topk_group <= n_group,
                        "experts must lie in n_group groups of one size, of which topk_group are eligible");
            const int64_t group_size = num_experts / n_group;
            check_value(best_of_group <= group_size && num_experts_per_tok <= topk_group * group_size,
                        "more experts are to be chosen than there are");
            const Rule rule{num_experts, num_experts_per_tok, is_sigmoid,   n_group,
                            topk_group,  best_of_group,       renormalises, scale};
            const auto ids = logits_TE.make<int64_t>({logits.shape[0], num_experts_per_tok});
            const auto weights = logits_TE.make<float>(ids.view.shape);
            launch(logits.shape[0], [=, ids = ids.view, weights = weights.view](int64_t rows) {
                parallel_rows(rows, 8, [&](int64_t token) {
                    route(logits.row(token), bias, rule, ids.row(token), weights.row(token));
                });
            });
            return std::pair(ids.tensor, weights.tensor);
        },
        "logits_TE"_a, "bias_E"_a.none(), nb::kw_only(), "num_experts_per_tok"_a, "is_sigmoid"_a, "n_group"_a,
        "topk_group"_a, "best_of_group"_a, "renormalises"_a, "scale"_a);
}
