// The routed experts, all of a layer in one call, or only the sum over them. Contract: kernels/grouped_mlp/__init__.py.
//
//     gather    each pair of token and expert becomes a row, sorted by expert (uint8 weights: made uint8)
//     up        a panel of gate and one of up at a time, so that silu(gate) * up follows at once
//     down      weighted by the router
//     combine   each token's K rows summed, in fp32
//
// Without a router, tokens are rows: bf16 is read where it lies, and results go straight to where they belong. Work is
// shared out by pairs of panels of those experts that have rows.
#include "../native/packed.h"
#include "../native/panel_pairs.h"
#include "../silu_mul/silu.h"

#include <vector>

namespace {

using namespace native;

// An expert's weights; null if it is of another kind. Interleaved in gate_up: a panel of gate, a panel of up.
template <typename A>
struct Expert {
    const Weight<A>* gate_up;  // [2 * round_up(F, 16), H]
    const Weight<A>* down;     // [H, F]
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
    std::vector<int64_t> first, count;      // of each expert
    std::vector<int64_t> active;            // experts that have rows
    std::vector<int64_t> of_pair;           // [T * K]: the row, or -1 for an expert of another kind
    std::vector<int64_t> token, of_expert;  // of each row; token is -1 for those that only fill up
    std::vector<float> weight;              // the router's
    int64_t total;
};

// Without ids, every token goes to expert 0, and without weights as it is.
template <typename A>
void sort_rows(Rows& rows, const Sizes& sizes, const Expert<A>* experts, const int64_t* ids, const float* weights) {
    const int64_t num_pairs = sizes.num_tokens * sizes.top_k;
    rows.count.assign(sizes.num_experts, 0);
    rows.first.resize(sizes.num_experts);
    rows.active.clear();
    const auto expert_of = [&](int64_t p) { return ids ? ids[p] : 0; };
    for (int64_t p = 0; p < num_pairs; ++p)
        if (experts[expert_of(p)].gate_up) ++rows.count[expert_of(p)];
    rows.total = 0;
    for (int64_t e = 0; e < sizes.num_experts; ++e) {
        rows.first[e] = rows.total;
        rows.total += round_up(rows.count[e], ROWS);
        if (rows.count[e]) rows.active.push_back(e);
    }
    rows.of_pair.resize(num_pairs);
    rows.token.assign(rows.total, -1);
    rows.of_expert.resize(rows.total);
    rows.weight.resize(rows.total);
    std::vector<int64_t> next = rows.first;
    for (int64_t p = 0; p < num_pairs; ++p) {
        const int64_t expert = expert_of(p), row = experts[expert].gate_up ? next[expert]++ : -1;
        rows.of_pair[p] = row;
        if (row < 0) continue;
        rows.token[row] = p / sizes.top_k;
        rows.of_expert[row] = expert;
        rows.weight[row] = weights ? weights[p] : 1;
    }
}

// One call's experts, and its rows on their way through them.
template <typename T, typename A>
struct Pass {
    static constexpr bool IS_INT8 = sizeof(A) == 1;
    typedef std::conditional_t<IS_INT8, float, A> Activated;

    const Expert<A>* experts;
    const Rows& rows;
    const int64_t H, F;
    Matrix<const A> in;           // [rows, H]
    Matrix<Activated> activated;  // [rows, F]: silu(gate) * up
    Matrix<A> inner;              // [rows, F]: the same, made uint8
    Grid *in_grids, *inner_grids;

    // f(row) of the rows that have a token.
    template <typename F>
    void each_row(const F& f) const {
        parallel_rows(rows.total, 4, [&](int64_t row) {
            if (rows.token[row] >= 0) f(row);
        });
    }

    void gather(const T* x, A* gathered) const {
        each_row([&](int64_t row) {
            const T* from = x + rows.token[row] * H;
            if constexpr (IS_INT8) {
                in_grids[row] =
                    quantize_row(from, H, in.stride, gathered + row * in.stride, experts[rows.of_expert[row]].in);
            } else {
                if (gathered) {
                    std::memcpy(gathered + row * in.stride, from, H * sizeof(A));
                    std::memset(gathered + row * in.stride + H, 0, (in.stride - H) * sizeof(A));
                }
                std::memset(inner.row(row) + F, 0, (inner.stride - F) * sizeof(A));
            }
        });
    }

    // epilogue(expert, panel, row, M, sums) for each expert's product of `source` with a weight of its.
    template <typename Epilogue>
    void multiply(Matrix<const A> source, int64_t num_panels, const Weight<A>* Expert<A>::* weight,
                  const Epilogue& epilogue) const {
        const int64_t pairs = (num_panels + 1) / 2, K = source.stride;
        const auto pair_at = [&](int64_t i) {
            const int64_t e = rows.active[i / pairs], panel = i % pairs * 2;
            return Pair<A>{source.from(rows.first[e]), rows.count[e], experts[e].*weight + panel * K * PANEL,
                           std::min<int64_t>(2, num_panels - panel)};
        };
        multiply_pairs<A>(rows.active.size() * pairs, K, pair_at,
                          [&](int64_t i, int64_t row, int64_t M, const Sum<A>* sums) {
                              const int64_t e = rows.active[i / pairs];
                              epilogue(experts[e], i % pairs * 2, rows.first[e] + row, M, sums);
                          });
    }

    void up() const {
        multiply(in, 2 * ((F + PANEL - 1) / PANEL), &Expert<A>::gate_up,
                 [&](const Expert<A>& expert, int64_t panel, int64_t row, int64_t M, const Sum<A>* sums) {
                     const Scaling scaling{expert.gate_up_scales, expert.gate_up_totals, in_grids};
                     const auto value = [&](const Sum<A>* gate, int64_t row, int64_t column) {
                         return silu(scaling(gate, row, 2 * column)) *
                                scaling(gate + PANEL, row, 2 * column + PANEL);  // as they are interleaved
                     };
                     store_panel(sums, row, M, panel / 2 * PANEL, IS_INT8 ? activated.stride : F, activated, value);
                 });
        if constexpr (IS_INT8)
            each_row([&](int64_t row) {
                inner_grids[row] = quantize_row(activated.row(row), F, inner.stride, inner.row(row),
                                                experts[rows.of_expert[row]].inner);
            });
    }

    // To `to`, of `width` columns: finish(value, row, column) of each 16 values.
    template <typename Y, typename Finish>
    void down(Matrix<Y> to, int64_t width, const Finish& finish) const {
        multiply({inner.data, inner.stride}, (H + PANEL - 1) / PANEL, &Expert<A>::down,
                 [&](const Expert<A>& expert, int64_t panel, int64_t row, int64_t M, const Sum<A>* sums) {
                     const Scaling scaling{expert.down_scales, expert.down_totals, inner_grids};
                     const auto value = [&](const Sum<A>* own, int64_t row, int64_t column) {
                         return finish(scaling(own, row, column), row, column);
                     };
                     const int64_t first = panel * PANEL;
                     for (int64_t column = first; column < std::min(first + BLOCK, H); column += PANEL)
                         store_panel(sums + column - first, row, M, column, width, to, value);
                 });
    }

    void combine(Matrix<float> out, const Sizes& sizes, T* y, bool add) const {
        const int64_t top_k = sizes.top_k;
        parallel_rows(sizes.num_tokens, 4, [&](int64_t token) {
            const int64_t* of = rows.of_pair.data() + token * top_k;
            T* to = y + token * H;
            for (int64_t h = 0; h < H; h += LANES) {
                v16 sum{};
                for (int64_t k = 0; k < top_k; ++k)
                    if (of[k] >= 0) sum += load(out.row(of[k]) + h);
                store_to(to, h, H, add ? sum + load_from(to, h, H) : sum);
            }
        });
    }
};

template <typename T, typename A>
void experts(const T* x, const int64_t* ids, const float* weights, const Expert<A>* experts, const Sizes& sizes,
             bool add, T* y) {
    constexpr bool IS_INT8 = sizeof(A) == 1;
    static thread_local Rows rows;
    static thread_local Scratch<A> in_memory, inner_memory;
    static thread_local Scratch<float> activated_memory, out_memory;
    static thread_local Scratch<Grid> grid_memory;
    sort_rows(rows, sizes, experts, ids, weights);
    const int64_t H = sizes.hidden, F = sizes.inter, total = rows.total, in_K = padded<A>(H), inner_K = padded<A>(F);
    const bool is_whole = !IS_INT8 && !ids && in_K == H && total == sizes.num_tokens;
    A* const gathered = is_whole ? nullptr : in_memory.room(total * in_K);
    const Matrix<const A> in{is_whole ? reinterpret_cast<const A*>(x) : gathered, in_K};
    const Matrix<A> inner{inner_memory.room(total * inner_K), inner_K};
    Grid* const grids = IS_INT8 ? grid_memory.room(2 * total) : nullptr;
    Pass<T, A> pass{experts, rows, H, F, in, {}, inner, grids, grids + total};
    if constexpr (IS_INT8)
        pass.activated = {activated_memory.room(total * round_up(F, PANEL)), round_up(F, PANEL)};
    else
        pass.activated = inner;
    if (!is_whole || inner_K > F) pass.gather(x, gathered);
    pass.up();
    if (!ids)
        return pass.down(Matrix<T>{y, H}, H, [=](v16 value, int64_t row, int64_t column) {
            return add ? value + load_from(y + row * H, column, H) : value;
        });
    const Matrix<float> out{out_memory.room(total * round_up(H, PANEL)), round_up(H, PANEL)};
    const float* const weight = rows.weight.data();
    pass.down(out, out.stride, [=](v16 value, int64_t row, int64_t) { return value * weight[row]; });
    pass.combine(out, sizes, y, add);
}

// The experts of a layer, packed; each is in one of two lists, and null in the other.
class Experts {
 public:
    void add(const PackedWeight& gate_up, const PackedWeight& down) {
        if (own.empty()) hidden = gate_up.in_size, inter = down.in_size;
        check_value(gate_up.in_size == hidden && gate_up.out_size == 2 * inter && gate_up.parts == 2 &&
                        down.in_size == inter && down.out_size == hidden && down.parts == 1,
                    "gate_up must be [2F, H] in two parts, and down [H, F], as of the other experts");
        const bool is_int8 = gate_up.operand == Element::UINT8;
        check_value(gate_up.operand == down.operand && (is_int8 || gate_up.operand == Element::BFLOAT16) &&
                        bool(gate_up.totals) == is_int8 && !gate_up.scales == !is_int8 && !down.scales == !is_int8,
                    "gate_up and down must be packed for uint8, or both be in bfloat16");
        own.push_back(is_int8 ? Expert<bf16>{} : expert<bf16>(gate_up, down));
        own_int8.push_back(is_int8 ? expert<uint8_t>(gate_up, down) : Expert<uint8_t>{});
        (is_int8 ? has_int8 : has_own) = true;
        held.insert(held.end(), {gate_up, down});
    }

    static Tensor forward(std::shared_ptr<Experts> self, Tensor x_TH, std::optional<Tensor> ids_TK,
                          std::optional<Tensor> weights_TK, std::optional<Tensor> onto_TH) {
        check_value(!self->own.empty(), "there must be an expert");
        check_value(bool(ids_TK) == bool(weights_TK), "ids_TK and weights_TK must be given together");
        const auto x = x_TH.packed<const bf16>("x_TH", {ANY, self->hidden});
        View<const int64_t, 2> ids{nullptr, {x.shape[0], 1}};
        const float* weights = nullptr;
        if (ids_TK) {
            ids = ids_TK->packed<const int64_t>("ids_TK", {x.shape[0], ANY});
            weights = weights_TK->packed<const float>("weights_TK", ids.shape).data;
        }
        const bool adds = bool(onto_TH);
        const auto y =
            adds ? Made<bf16, 2>{*onto_TH, onto_TH->packed<bf16>("onto_TH", x.shape)} : x_TH.make<bf16>(x.shape);
        launch(x.shape[0], [=, y = y.view](int64_t rows) {
            const Sizes sizes{rows, ids.shape[1], int64_t(self->own.size()), self->hidden, self->inter};
            if (ids.data) check_indices(ids.data, rows * sizes.top_k, sizes.num_experts, "ids_TK");
            if (self->has_own) experts(x.data, ids.data, weights, self->own.data(), sizes, adds, y.data);
            if (self->has_int8)
                experts(x.data, ids.data, weights, self->own_int8.data(), sizes, adds || self->has_own, y.data);
        });
        return y.tensor;
    }

 private:
    template <typename A>
    static Expert<A> expert(const PackedWeight& gate_up, const PackedWeight& down) {
        return {gate_up.data<A>(),    down.data<A>(),    gate_up.scales.get(), down.scales.get(),
                gate_up.totals.get(), down.totals.get(), gate_up.grid,         down.grid};
    }

    int64_t hidden = 0, inter = 0;
    std::vector<Expert<bf16>> own;
    std::vector<Expert<uint8_t>> own_int8;
    bool has_own = false, has_int8 = false;
    std::vector<PackedWeight> held;
};

// A token's y = sum over k of weights[k] * rows[where[k]], in fp32.
template <typename T>
void combine(const T* rows, const int64_t* where, const float* weights, T* y, int64_t top_k, int64_t size) {
    const int64_t whole = size / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        v16 sum{};
        for (int64_t k = 0; k < top_k; ++k) sum += load(rows + where[k] * size + i) * weights[k];
        store(y + i, sum);
    }
    for (int64_t i = whole; i < size; ++i) {
        float sum = 0;
        for (int64_t k = 0; k < top_k; ++k) sum += load1(rows + where[k] * size + i) * weights[k];
        store1(y + i, sum);
    }
}

}  // namespace

void native::bind_grouped_mlp(nb::module_& m) {
    nb::class_<Experts>(m, "Experts")
        .def(nb::init<>())
        .def("add", &Experts::add, "gate_up"_a, "down"_a)
        .def("forward", &Experts::forward, "x_TH"_a, "ids_TK"_a = nb::none(), "weights_TK"_a = nb::none(),
             "onto_TH"_a = nb::none());
    m.def(
        "combine",
        [](Tensor y_PH, Tensor where_TK, Tensor weights_TK) {
            return with_dtype(y_PH, "y_PH", [&](auto number) {
                using T = decltype(number);
                const auto where = where_TK.packed<const int64_t>("where_TK", {ANY, ANY});
                const auto weights = weights_TK.packed<const float>("weights_TK", where.shape);
                const auto y = y_PH.packed<const T>("y_PH", {where.shape[0] * where.shape[1], ANY});
                const auto out = y_PH.make<T>({where.shape[0], y.shape[1]});
                launch(where.shape[0], [=, out = out.view](int64_t rows) {
                    check_indices(where.data, rows * where.shape[1], y.shape[0], "where_TK");
                    parallel_rows(rows, 8, [&](int64_t token) {
                        combine(y.data, where.row(token), weights.row(token), out.row(token), where.shape[1],
                                y.shape[1]);
                    });
                });
                return out.tensor;
            });
        },
        "y_PH"_a, "where_TK"_a, "weights_TK"_a);
}
