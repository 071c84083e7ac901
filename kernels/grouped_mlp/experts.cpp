// The routed experts, all of a layer in one call. Contract: kernels/grouped_mlp/__init__.py.
//
//     gather    each pair of token and expert becomes a row, sorted by expert (uint8 weights: made uint8, once a token)
//     gate, up  a panel of each at a time, so that silu(gate) * up follows at once
//     down      weighted by the router
//     combine   each token's K rows summed, in fp32
//
// Without a router, tokens are rows: bf16 is read where it lies, and results go straight to where they belong.
//
// Work is shared out by panels of experts that have rows; an expert without rows costs nothing, and each panel is read
// once for every 32 rows of its expert.
#include "../native/binding.h"
#include "../native/gemm.h"
#include "../native/packed.h"
#include "../silu_mul/silu.h"

#include <algorithm>
#include <vector>

namespace {

using namespace native;

// An expert's weights; null if it is of another kind. Interleaved in gate_up: a panel of gate, a panel of up.
template <typename A>
struct Expert {
    const typename Operands<A>::Weight* gate_up;  // [2 * round_up(F, 16), H]
    const typename Operands<A>::Weight* down;     // [H, F]
    // uint8 only, with memory for whole panels:
    const float *gate_up_scales, *down_scales;
    const int32_t *gate_up_totals, *down_totals;
    Grid in, inner;  // of x and of silu(gate) * up; scale 0: each row its own
};

struct Sizes {
    int64_t num_tokens, top_k, num_experts, hidden, inter;
};

// Rows sorted by expert, each expert's beginning at a multiple of 16.
struct Rows {
    std::vector<int64_t> first, count;  // of each expert
    std::vector<int64_t> of_pair;       // [T * K]: the row, or -1 for an expert of another kind
    std::vector<int64_t> token;         // of each row, -1 for those that only fill up
    std::vector<float> weight;          // the router's
    int64_t total;
};

// Without ids, every token goes to expert 0, and without weights as it is.
template <typename A>
void sort_rows(Rows& rows, const Sizes& sizes, const Expert<A>* experts, const int64_t* ids, const float* weights) {
    const int64_t num_pairs = sizes.num_tokens * sizes.top_k;
    rows.count.assign(sizes.num_experts, 0);
    rows.first.resize(sizes.num_experts);
    const auto expert_of = [&](int64_t p) { return ids ? ids[p] : 0; };
    for (int64_t p = 0; p < num_pairs; ++p)
        if (experts[expert_of(p)].gate_up) ++rows.count[expert_of(p)];
    rows.total = 0;
    for (int64_t e = 0; e < sizes.num_experts; ++e) {
        rows.first[e] = rows.total;
        rows.total += round_up(rows.count[e], 16);
    }
    rows.of_pair.resize(num_pairs);
    rows.token.assign(rows.total, -1);
    rows.weight.assign(rows.total, 0);
    std::vector<int64_t> next = rows.first;
    for (int64_t p = 0; p < num_pairs; ++p) {
        const int64_t expert = expert_of(p), row = experts[expert].gate_up ? next[expert]++ : -1;
        rows.of_pair[p] = row;
        if (row >= 0) rows.token[row] = p / sizes.top_k, rows.weight[row] = weights ? weights[p] : 1;
    }
}

// One panel's share of an expert, or a pair of panels' of its down projection.
struct Item {
    int32_t expert, panel;
};

template <typename T, typename A>
void experts(const T* x, const int64_t* ids, const float* weights, const Expert<A>* experts, const Sizes& sizes,
             bool add, T* y) {
    constexpr bool IS_INT8 = sizeof(A) == 1;
    static thread_local Rows rows;
    static thread_local Scratch<A> in_rows, inner_rows;
    static thread_local Scratch<float> float_rows, out_rows;
    static thread_local Scratch<Grid> grids;
    static thread_local std::vector<Item> up_items, down_items;
    sort_rows(rows, sizes, experts, ids, weights);
    const int64_t H = sizes.hidden, F = sizes.inter, in_K = padded<A>(H), inner_K = padded<A>(F), total = rows.total;
    const int64_t inter_panels = (F + PANEL - 1) / PANEL, hidden_panels = (H + PANEL - 1) / PANEL;
    const int64_t inner_stride = inter_panels * PANEL, out_stride = hidden_panels * PANEL;
    up_items.clear();
    down_items.clear();
    for (int32_t e = 0; e < sizes.num_experts; ++e) {
        if (!rows.count[e]) continue;
        for (int32_t panel = 0; panel < inter_panels; ++panel) up_items.push_back({e, panel});
        for (int32_t panel = 0; panel < hidden_panels; panel += 2) down_items.push_back({e, panel});
    }
    const bool is_routed = ids, is_whole = !IS_INT8 && !is_routed && in_K == H && total == sizes.num_tokens;
    A *const gathered = is_whole ? nullptr : in_rows.room(total * in_K), *const inner =
                                                                             inner_rows.room(total * inner_K);
    const A* const in = is_whole ? reinterpret_cast<const A*>(x) : gathered;
    float *const activated = IS_INT8 ? float_rows.room(total * inner_stride) : nullptr, *const out =
                                                                                            is_routed ? out_rows.room(
                                                                                                            total *
                                                                                                            out_stride)
                                                                                                      : nullptr;
    Grid *const in_grids = grids.room(2 * total), *const inner_grids = in_grids + total;
    const Rows& r = rows;
    const std::vector<Item>&ups = up_items, &downs = down_items;
    if (!is_whole || inner_K > F)
        parallel_spans(total, 4, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                if (r.token[row] < 0) continue;
                const T* from = x + r.token[row] * H;
                if constexpr (IS_INT8) {
                    const int64_t e = std::upper_bound(r.first.begin(), r.first.end(), row) - r.first.begin() - 1;
                    in_grids[row] = quantize_row(from, H, in_K, gathered + row * in_K, experts[e].in);
                } else {
                    if (!is_whole) {
                        std::memcpy(gathered + row * in_K, from, H * sizeof(A));
                        std::memset(gathered + row * in_K + H, 0, (in_K - H) * sizeof(A));
                    }
                    std::memset(inner + row * inner_K + F, 0, (inner_K - F) * sizeof(A));
                }
            }
        });
    parallel_pairs(ups.size(), [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) typename Operands<A>::Sum sums[BLOCK * BLOCK];
        for (int64_t i = begin; i < end; ++i) {
            const Item item = ups[i];
            const Expert<A>& expert = experts[item.expert];
            const typename Operands<A>::Weight* gate = expert.gate_up + 2 * item.panel * in_K * PANEL;
            const Item after = ups[i + 1 < end ? i + 1 : next_pair];
            const typename Operands<A>::Weight* next = experts[after.expert].gate_up + 2 * after.panel * in_K * PANEL;
            const int64_t at = item.panel * PANEL, num_columns = std::min(PANEL, F - at);
            const Scaling<A> gate_scaling(expert.gate_up_scales, expert.gate_up_totals, 2 * at);
            const Scaling<A> up_scaling(expert.gate_up_scales, expert.gate_up_totals, 2 * at + PANEL);
            for (int64_t done = 0; done < r.count[item.expert]; done += BLOCK) {
                const int64_t first = r.first[item.expert] + done, M = std::min(BLOCK, r.count[item.expert] - done);
                multiply(in + first * in_K, in_K, M, gate, gate + in_K * PANEL, in_K, sums, done ? nullptr : next);
                const Grid* const own = in_grids + first;
                std::conditional_t<IS_INT8, float, A>* const to = [&] {
                    if constexpr (IS_INT8)
                        return activated + first * inner_stride + at;
                    else
                        return inner + first * inner_K + at;
                }();
                const int64_t to_stride = IS_INT8 ? inner_stride : inner_K;
                for (int64_t m = 0; m < M; ++m) {
                    const v16 value =
                        silu(gate_scaling(sums + m * BLOCK, own + m)) * up_scaling(sums + m * BLOCK + PANEL, own + m);
                    if (IS_INT8 || num_columns == PANEL)
                        store(to + m * to_stride, value);
                    else
                        for (int64_t n = 0; n < num_columns; ++n) store1(to + m * to_stride + n, value[n]);
                }
            }
        }
    });
    if constexpr (IS_INT8)
        parallel_spans(total, 4, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                if (r.token[row] < 0) continue;
                const int64_t e = std::upper_bound(r.first.begin(), r.first.end(), row) - r.first.begin() - 1;
                inner_grids[row] =
                    quantize_row(activated + row * inner_stride, F, inner_K, inner + row * inner_K, experts[e].inner);
            }
        });
    parallel_pairs(downs.size(), [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles;
        alignas(64) typename Operands<A>::Sum sums[BLOCK * BLOCK];
        for (int64_t i = begin; i < end; ++i) {
            const Item item = downs[i];
            const Expert<A>& expert = experts[item.expert];
            const bool has_right = item.panel + 1 < hidden_panels;  // if not, the left one is computed twice
            const typename Operands<A>::Weight* left = expert.down + item.panel * inner_K * PANEL;
            const Item after = downs[i + 1 < end ? i + 1 : next_pair];
            const typename Operands<A>::Weight* next =
                experts[after.expert].down +
                std::min<int64_t>(after.panel, std::max<int64_t>(hidden_panels - 2, 0)) * inner_K * PANEL;
            const int64_t at = item.panel * PANEL;
            for (int64_t done = 0; done < r.count[item.expert]; done += BLOCK) {
                const int64_t first = r.first[item.expert] + done, M = std::min(BLOCK, r.count[item.expert] - done);
                multiply(inner + first * inner_K, inner_K, M, left, has_right ? left + inner_K * PANEL : left, inner_K,
                         sums, done ? nullptr : next);
                for (int64_t half = 0; half < 1 + has_right; ++half) {
                    const int64_t column = at + half * PANEL;
                    const Scaling<A> scaling(expert.down_scales, expert.down_totals, column);
                    const typename Operands<A>::Sum* const from = sums + half * PANEL;
                    const Grid* const own = inner_grids + first;
                    if (is_routed) {
                        float* const to = out + first * out_stride + column;
                        for (int64_t m = 0; m < M; ++m)
                            store(to + m * out_stride, scaling(from + m * BLOCK, own + m) * r.weight[first + m]);
                        continue;
                    }
                    for (int64_t m = 0; m < M; ++m) {
                        T* const to = y + (first + m) * H;
                        const v16 value = scaling(from + m * BLOCK, own + m);
                        store_to(to, column, H, add ? value + load_from(to, column, H) : value);
                    }
                }
            }
        }
    });
    if (!is_routed) return;
    parallel_spans(sizes.num_tokens, 4, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
            const int64_t* of = r.of_pair.data() + token * sizes.top_k;
            T* to = y + token * H;
            for (int64_t h = 0; h < H; h += LANES) {
                v16 sum{};
                for (int64_t k = 0; k < sizes.top_k; ++k)
                    if (of[k] >= 0) sum += load(out + of[k] * out_stride + h);
                if (H - h >= LANES) {
                    if (add) sum += load(to + h);
                    store(to + h, sum);
                } else {
                    for (int64_t n = 0; n < H - h; ++n) store1(to + h + n, sum[n] + (add ? load1(to + h + n) : 0));
                }
            }
        }
    });
}

// The experts of a layer, packed; each is in one of two lists, and null in the other.
class Experts {
 public:
    Experts(int64_t hidden, int64_t inter) : hidden(hidden), inter(inter) {}

    void add(Tensor gate_up_2FH, Tensor down_HF) {
        own.push_back(packed<bf16>(gate_up_2FH, down_HF));
        own_int8.emplace_back();
        has_own = true;
    }

    void add_int8(Tensor gate_up_2FH, Tensor gate_up_scale, Tensor down_HF, Tensor down_scale, float in_scale,
                  int32_t in_zero, float inner_scale, int32_t inner_zero) {
        Expert<uint8_t> expert = packed<uint8_t>(gate_up_2FH, down_HF);
        const auto gate_up = gate_up_2FH.packed<const int8_t>("gate_up_2FH", {2 * inter, hidden});
        const auto down = down_HF.packed<const int8_t>("down_HF", {hidden, inter});
        expert.gate_up_scales = hold(whole_panels(gate_up_scale.packed<const float>("gate_up_scale", {2 * inter}), 2));
        expert.down_scales = hold(whole_panels(down_scale.packed<const float>("down_scale", {hidden})));
        expert.gate_up_totals = hold(row_totals(gate_up, 2));
        expert.down_totals = hold(row_totals(down));
        expert.in = {in_scale, in_zero};
        expert.inner = {inner_scale, inner_zero};
        own.emplace_back();
        own_int8.push_back(expert);
        has_int8 = true;
    }

    static void forward(const std::shared_ptr<Experts>& self, Tensor x_TH, std::optional<Tensor> ids_TK,
                        std::optional<Tensor> weights_TK, Tensor y_TH, bool adds) {
        const auto x = x_TH.packed<const bf16>("x_TH", {ANY, self->hidden});
        const auto y = y_TH.packed<bf16>("y_TH", x.shape);
        check_value(bool(ids_TK) == bool(weights_TK), "ids_TK and weights_TK must be given together");
        check_value(!self->own.empty(), "there must be an expert");
        View<const int64_t, 2> ids{nullptr, {x.shape[0], 1}};
        const float* weights = nullptr;
        if (ids_TK) {
            ids = ids_TK->packed<const int64_t>("ids_TK", {x.shape[0], ANY});
            weights = weights_TK->packed<const float>("weights_TK", ids.shape).data;
        }
        launch(x.shape[0], [=](int64_t rows) {
            const Sizes sizes{rows, ids.shape[1], int64_t(self->own.size()), self->hidden, self->inter};
            if (ids.data) check_indices(ids.data, rows * sizes.top_k, sizes.num_experts, "ids_TK");
            if (self->has_own) experts(x.data, ids.data, weights, self->own.data(), sizes, adds, y.data);
            if (self->has_int8)
                experts(x.data, ids.data, weights, self->own_int8.data(), sizes, adds || self->has_own, y.data);
        });
    }

 private:
    template <typename A>
    Expert<A> packed(const Tensor& gate_up_2FH, const Tensor& down_HF) {
        typedef typename Operands<A>::Weight W;
        const auto gate_up = gate_up_2FH.packed<const W>("gate_up_2FH", {2 * inter, hidden});
        const auto down = down_HF.packed<const W>("down_HF", {hidden, inter});
        const auto to_gate_up = weights<W>(2 * round_up(inter, PANEL) * padded<A>(hidden));
        const auto to_down = weights<W>(round_up(hidden, PANEL) * padded<A>(inter));
        launch_uncaptured("packing a weight", [&] {
            pack<A>(gate_up.data, inter, hidden, to_gate_up.get(), 0, 2);
            pack<A>(gate_up.data + inter * hidden, inter, hidden, to_gate_up.get(), 1, 2);
            pack<A>(down.data, hidden, inter, to_down.get(), 0, 1);
        });
        Expert<A> expert{};
        expert.gate_up = hold(to_gate_up);
        expert.down = hold(to_down);
        return expert;
    }

    template <typename T>
    T* hold(const std::shared_ptr<T>& memory) {
        held.push_back(memory);
        return memory.get();
    }

    int64_t hidden, inter;
    std::vector<Expert<bf16>> own;
    std::vector<Expert<uint8_t>> own_int8;
    bool has_own = false, has_int8 = false;
    std::vector<std::shared_ptr<void>> held;
};

}  // namespace

void native::bind_experts(nb::module_& m) {
    nb::class_<Experts>(m, "Experts")
        .def(nb::init<int64_t, int64_t>(), "hidden_size"_a, "intermediate_size"_a)
        .def("add", &Experts::add, "gate_up_2FH"_a, "down_HF"_a)
        .def("add_int8", &Experts::add_int8, "gate_up_2FH"_a, "gate_up_scale"_a, "down_HF"_a, "down_scale"_a,
             nb::kw_only(), "in_scale"_a, "in_zero"_a, "inner_scale"_a, "inner_zero"_a)
        .def(
            "forward",
            [](std::shared_ptr<Experts> self, Tensor x_TH, std::optional<Tensor> ids_TK,
               std::optional<Tensor> weights_TK, Tensor y_TH,
               bool adds) { Experts::forward(self, x_TH, ids_TK, weights_TK, y_TH, adds); },
            "x_TH"_a, "ids_TK"_a.none(), "weights_TK"_a.none(), "y_TH"_a, "adds"_a);
}
