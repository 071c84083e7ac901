// head_linear on a CPU. Contract: kernels/head_linear/__init__.py.
#include "../native/binding.h"
#include "../native/matmul.h"

namespace {

using namespace native;

constexpr int64_t COLUMNS = 128;   // a thread's share of a head
constexpr int64_t ROW_BLOCK = 64;  // rows whose sums are held at a time

// x's rows of `dim` values, padded with zeros to whole tiles.
template <typename T, typename O>
inline void copy_rows(Matrix<const T> x, int64_t num_rows, int64_t dim, Matrix<O> rows) {
    std::memset(rows.data, 0, round_up(num_rows, ROWS) * rows.stride * sizeof(O));
    for (int64_t m = 0; m < num_rows; ++m)
        if constexpr (std::is_same_v<T, O>)
            std::memcpy(rows.row(m), x.row(m), dim * sizeof(O));
        else
            for (int64_t k = 0; k < dim; k += LANES) store(rows.row(m) + k, load_from(x.row(m), k, dim));
}

// weight: panels [heads][M / 16][K / GROUP][16][GROUP], K and M rounded up to `inner` and 16.
template <typename T, typename O>
void head_linear(const View<const T, 3>& x, const O* weight, int64_t inner, const View<T, 3>& out, int64_t num_tokens) {
    const int64_t num_in = x.shape[2], num_out = out.shape[2];
    const int64_t columns = round_up(num_out, LANES), shares = (columns + COLUMNS - 1) / COLUMNS;
    parallel_spans(x.shape[1] * shares, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        char* const memory = scratch(ROW_BLOCK * (inner * sizeof(O) + COLUMNS * sizeof(float)));
        const Matrix<O> rows{reinterpret_cast<O*>(memory), inner};
        const Matrix<float> sums{reinterpret_cast<float*>(rows.row(ROW_BLOCK)), COLUMNS};
        for (int64_t share = begin; share < end; ++share) {
            const int64_t head = share / shares, first = share % shares * COLUMNS,
                          count = std::min(COLUMNS, columns - first);
            const O* panels = weight + (head * columns + first) * inner;
            for (int64_t token = 0; token < num_tokens; token += ROW_BLOCK) {
                const int64_t M = std::min(ROW_BLOCK, num_tokens - token);
                copy_rows<T>({x.row(token, head), x.stride[0]}, M, num_in, rows);
                product<false, O>({rows.data, inner}, M, {panels, PANEL * inner}, count, sums, inner);
                const Matrix<T> to{out.row(token, head), out.stride[0]};
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t n = 0; n < count; n += LANES)
                        store_to(to.row(m), first + n, num_out, load(sums.row(m) + n));
            }
        }
    });
}

// Matrices [K, M] of type T as the panels that head_linear takes.
template <typename T, typename O>
void pack_heads(const View<const T, 3>& weight, int64_t inner, O* packed) {
    const int64_t num_in = weight.shape[1], num_out = weight.shape[2], size = round_up(num_out, LANES) * inner;
    parallel_rows(weight.shape[0], 1, [&](int64_t n) {
        for (int64_t k = 0; k < num_in; ++k)
            for (int64_t m = 0; m < num_out; ++m)
                store1(packed + n * size + m / LANES * LANES * inner + (k / GROUP<O> * LANES + m % LANES) * GROUP<O> +
                           k % GROUP<O>,
                       load1(weight.row(n, k) + m));
    });
}

// A layer's packed weights, for x of their dtype.
struct HeadLinear {
    Element dtype;
    std::shared_ptr<void> weight;
    int64_t num_heads, num_in, num_out, inner;

    explicit HeadLinear(Tensor weight_NKM) : dtype(weight_NKM.element("weight_NKM")) {
        with_element(dtype, "weight_NKM", [&](auto number) {
            using T = decltype(number);
            using O = typename Operand<T>::type;
            const auto from = weight_NKM.packed<const T>("weight_NKM", {ANY, ANY, ANY});
            num_heads = from.shape[0], num_in = from.shape[1], num_out = from.shape[2];
            inner = round_up(num_in, LANES * GROUP<O>);
            const auto to = weights<O>(num_heads * round_up(num_out, LANES) * inner);
            launch_uncaptured("packing a weight", [&] { pack_heads(from, inner, to.get()); });
            weight = to;
        });
    }
};

template <typename T>
void forward(const std::shared_ptr<HeadLinear>& layer, const Tensor& x_TNK, const Tensor& out_TNM, int64_t first) {
    const auto x = x_TNK.view<const T>("x_TNK", {ANY, ANY, layer->num_in});
    const auto out = out_TNM.view<T>("out_TNM", {x.shape[0], x.shape[1], layer->num_out});
    check_value(first >= 0 && first + x.shape[1] <= layer->num_heads, "x_TNK has more heads than the weight has");
    launch(x.shape[0], [=](int64_t rows) {
        const auto* const own = static_cast<const typename Operand<T>::type*>(layer->weight.get()) +
                                first * round_up(layer->num_out, LANES) * layer->inner;
        head_linear(x, own, layer->inner, out, rows);
    });
}

}  // namespace

void native::bind_head_linear(nb::module_& m) {
    nb::class_<HeadLinear>(m, "HeadLinear")
        .def(nb::init<Tensor>(), "weight_NKM"_a)
        .def(
            "forward",
            [](std::shared_ptr<HeadLinear> self, Tensor x_TNK, Tensor out_TNM, int64_t first) {
                with_element(self->dtype, "x_TNK",
                             [&](auto number) { forward<decltype(number)>(self, x_TNK, out_TNM, first); });
            },
            "x_TNK"_a, "out_TNM"_a, "first"_a = 0);
}
