// The routed experts, all of a layer in one call, or only the sum over them. Contract: kernels/grouped_mlp/__init__.py.
//
//     gather    each pair of token and expert becomes a row, sorted by expert, as its products take it
//     up        a panel of gate and one of up at a time, so that silu(gate) * up follows at once
//     down      weighted by the router
//     combine   each token's K rows summed, in fp32
//
// Without a router, tokens are rows: bf16 is read where it lies, and results go straight to where they belong. Work is
// shared out by pairs of panels of those experts that have rows.
#include "../silu_mul/silu.h"
#include "rows.h"

#include <tuple>

namespace {

using namespace native;

// An expert in panels, those of gate_up interleaved: one of gate, one of up.
struct PanelExpert {
    PackedWeight gate_up, down;

    template <typename Rows>
    auto up_pair(const Rows& rows, const Span& span, int64_t i) const {
        return pair_of(rows, span, gate_up, i);
    }
    template <typename Rows>
    auto down_pair(const Rows& rows, const Span& span, int64_t i) const {
        return pair_of(rows, span, down, i);
    }
    const PackedWeight& first() const { return gate_up; }
};

// An expert in blocks.
struct BlockExpert {
    PackedBlocks gate, up, down;

    BlockPair up_pair(const GroupedRows& rows, const Span& span, int64_t i) const {
        return {&rows, span, span.count, {gate.panel(i), up.panel(i)}, 2};
    }
    WidePair<bf16> up_pair(const FloatRows& rows, const Span& span, int64_t i) const {
        const Matrix<const bf16> own = rows.values.from(span.first);
        return {own, span.count, {gate.panel(i), up.panel(i)}, 2, padded<bf16>(gate.in_size)};
    }
    template <typename Rows>
    auto down_pair(const Rows& rows, const Span& span, int64_t i) const {
        return pair_of(rows, span, down, i);
    }
    const PackedBlocks& first() const { return gate; }
};

// The experts of a layer of one kind, which says what their products' rows are; null where an expert is of another.
template <typename R, typename E>
struct Kind {
    typedef R Rows;
    typedef E Expert;
    std::vector<std::shared_ptr<const E>> experts;

    bool any() const {
        return std::any_of(experts.begin(), experts.end(), [](const auto& expert) { return bool(expert); });
    }
};

struct Sizes {
    int64_t num_tokens, top_k, hidden, inter;
};

// One call's experts of a kind, and its rows on their way through them.
template <typename T, typename K>
struct Pass {
    typedef typename K::Rows Rows;
    typedef typename K::Expert Expert;
    typedef std::conditional_t<Rows::IS_FLOAT, T, float> Activated;

    const K& kind;
    const SortedRows& rows;
    const int64_t H, F;
    Rows &in, &inner;             // [rows, H]; [rows, F]
    Matrix<Activated> activated;  // [rows, F]: silu(gate) * up; of rows in floats, `inner` itself

    const Expert& expert(int64_t e) const { return *kind.experts[e]; }

    // f(row, its expert's span) of the rows that have a token.
    template <typename F>
    void each_row(const F& f) const {
        parallel_rows(rows.total, 4, [&](int64_t row) {
            if (rows.token[row] >= 0) f(row, rows.spans[rows.of_expert[row]]);
        });
    }

    void gather(const T* x, Matrix<T> gathered) const {
        each_row([&](int64_t row, const Span& span) {
            const T* from = x + rows.token[row] * H;
            if constexpr (!Rows::IS_FLOAT) {
                put_row(in, span, row, from, H, expert(rows.of_expert[row]).first());
            } else {
                if (gathered.data) {
                    std::memcpy(gathered.row(row), from, H * sizeof(T));
                    std::memset(gathered.row(row) + H, 0, (gathered.stride - H) * sizeof(T));
                }
                std::memset(activated.row(row) + F, 0, (activated.stride - F) * sizeof(T));
            }
        });
    }

    // epilogue(expert, pair, row, M, sums) of pair(expert, span, i) for each of an expert's so many pairs.
    template <typename PairOf, typename Epilogue>
    void multiply(int64_t pairs, const PairOf& pair, const Epilogue& epilogue) const {
        const auto pair_at = [&](int64_t i) {
            const int64_t e = rows.active[i / pairs];
            return pair(expert(e), rows.spans[e], i % pairs);
        };
        multiply_pairs(rows.active.size() * pairs, pair_at, [&](int64_t i, int64_t row, int64_t M, const auto* sums) {
            const int64_t e = rows.active[i / pairs];
            epilogue(expert(e), i % pairs, rows.spans[e].first + row, M, sums);
        });
    }

    void up() const {
        const auto pair = [&](const Expert& expert, const Span& span, int64_t i) {
            return expert.up_pair(in, span, i);
        };
        multiply((F + PANEL - 1) / PANEL, pair,
                 [&](const Expert& expert, int64_t i, int64_t row, int64_t M, const auto* sums) {
                     const Scaling scaling = scaling_of(in, expert.first());
                     const auto value = [&](const auto* gate, int64_t row, int64_t column) {
                         return silu(scaling(gate, row, 2 * column)) *
                                scaling(gate + PANEL, row, 2 * column + PANEL);  // as they are interleaved
                     };
                     store_panel(sums, row, M, i * PANEL, Rows::IS_FLOAT ? F : activated.stride, activated, value);
                 });
        if constexpr (!Rows::IS_FLOAT)
            each_row([&](int64_t row, const Span& span) {
                put_row(inner, span, row, activated.row(row), F, expert(rows.of_expert[row]).down);
            });
    }

    // To `to`, of `width` columns: finish(value, row, column) of each 16 values.
    template <typename Y, typename Finish>
    void down(Matrix<Y> to, int64_t width, const Finish& finish) const {
        const auto pair = [&](const Expert& expert, const Span& span, int64_t i) {
            return expert.down_pair(inner, span, i);
        };
        multiply((H + BLOCK - 1) / BLOCK, pair,
                 [&](const Expert& expert, int64_t i, int64_t row, int64_t M, const auto* sums) {
                     const Scaling scaling = scaling_of(inner, expert.down);
                     const auto value = [&](const auto* own, int64_t row, int64_t column) {
                         return finish(scaling(own, row, column), row, column);
                     };
                     const int64_t first = i * BLOCK;
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

template <typename T, typename K>
void experts(const T* x, const int64_t* ids, const float* weights, const K& kind, const Sizes& sizes, bool add, T* y) {
    typedef typename K::Rows Rows;
    static thread_local SortedRows rows;
    static thread_local Rows in, inner;
    static thread_local Scratch<float> activated_memory, out_memory;
    rows.sort(sizes.num_tokens, sizes.top_k, kind.experts.size(), ids, weights,
              [&](int64_t expert) { return bool(kind.experts[expert]); });
    const int64_t H = sizes.hidden, F = sizes.inter, total = rows.total;
    Pass<T, K> pass{kind, rows, H, F, in, inner, {}};
    if constexpr (Rows::IS_FLOAT) {
        pass.activated = inner.make_room(total, F);
        const bool is_whole = !ids && padded<T>(H) == H && total == sizes.num_tokens;
        const Matrix<T> gathered = is_whole ? Matrix<T>{} : in.make_room(total, H);
        if (is_whole) in.values = {x, H};
        if (!is_whole || padded<T>(F) > F) pass.gather(x, gathered);
    } else {
        in.make_room(total, H);
        inner.make_room(total, F);
        pass.activated = {activated_memory.room(total * round_up(F, PANEL)), round_up(F, PANEL)};
        pass.gather(x, {});
    }
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

// The experts of a layer, packed; each is of one kind.
class Experts {
 public:
    void add(const PackedWeight& gate_up, const PackedWeight& down) {
        check_sizes(gate_up.in_size, gate_up.out_size, down.in_size, down.out_size);
        check_value(gate_up.parts == 2 && down.parts == 1, "gate_up must be packed in two parts, and down in one");
        const bool is_int8 = gate_up.operand == Element::UINT8;
        check_value(gate_up.operand == down.operand && (is_int8 || gate_up.operand == Element::BFLOAT16) &&
                        bool(gate_up.totals) == is_int8 && !gate_up.scales == !is_int8 && !down.scales == !is_int8,
                    "gate_up and down must be packed for uint8, or both be in bfloat16");
        const auto expert = std::make_shared<const PanelExpert>(PanelExpert{gate_up, down});
        is_int8 ? put<Kind<GridRows, PanelExpert>>(expert) : put<Kind<FloatRows, PanelExpert>>(expert);
    }

    void add_blocks(const PackedBlocks& gate, const PackedBlocks& up, const PackedBlocks& down) {
        check_sizes(gate.in_size, gate.out_size + up.out_size, down.in_size, down.out_size);
        check_value(gate.out_size == up.out_size, "gate and up must be of one size");
        check_value(gate.shares_rows(up), "gate and up must want the same rows");
        const bool is_dynamic = gate.is_dynamic;
        check_value(down.is_dynamic == is_dynamic, "gate, up and down must take one kind of input");
        const auto expert = std::make_shared<const BlockExpert>(BlockExpert{gate, up, down});
        is_dynamic ? put<Kind<GroupedRows, BlockExpert>>(expert) : put<Kind<FloatRows, BlockExpert>>(expert);
    }

    static Tensor forward(std::shared_ptr<Experts> self, Tensor x_TH, std::optional<Tensor> ids_TK,
                          std::optional<Tensor> weights_TK, std::optional<Tensor> onto_TH) {
        check_value(self->num_experts > 0, "there must be an expert");
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
            const Sizes sizes{rows, ids.shape[1], self->hidden, self->inter};
            if (ids.data) check_indices(ids.data, rows * sizes.top_k, self->num_experts, "ids_TK");
            bool add = adds;
            self->each_kind([&](const auto& kind) {
                if (!kind.any()) return;
                experts(x.data, ids.data, weights, kind, sizes, add, y.data);
                add = true;
            });
        });
        return y.tensor;
    }

 private:
    void check_sizes(int64_t gate_up_in, int64_t gate_up_out, int64_t down_in, int64_t down_out) {
        if (!num_experts) hidden = gate_up_in, inter = down_in;
        check_value(gate_up_in == hidden && gate_up_out == 2 * inter && down_in == inter && down_out == hidden,
                    "gate_up must be [2F, H], and down [H, F], as of the other experts");
    }

    template <typename F>
    void each_kind(const F& f) {
        std::apply([&](auto&... kind) { (f(kind), ...); }, kinds);
    }

    template <typename K>
    void put(std::shared_ptr<const typename K::Expert> expert) {
        each_kind([](auto& kind) { kind.experts.push_back(nullptr); });
        std::get<K>(kinds).experts.back() = std::move(expert);
        ++num_experts;
    }

    int64_t hidden = 0, inter = 0, num_experts = 0;
    std::tuple<Kind<FloatRows, PanelExpert>, Kind<GridRows, PanelExpert>, Kind<FloatRows, BlockExpert>,
               Kind<GroupedRows, BlockExpert>>
        kinds;
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
        .def("add_blocks", &Experts::add_blocks, "gate"_a, "up"_a, "down"_a)
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
