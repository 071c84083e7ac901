// head_linear on a CPU. Contract: kernels/head_linear/__init__.py.
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
template <typename T>
void head_linear(const T* x, int64_t x_token, int64_t x_head, const typename Operand<T>::type* weight, T* out,
                 int64_t out_token, int64_t out_head, int64_t num_tokens, int64_t num_heads, int64_t num_in,
                 int64_t num_out, int64_t inner) {
    typedef typename Operand<T>::type O;
    const int64_t columns = round_up(num_out, LANES), shares = (columns + COLUMNS - 1) / COLUMNS;
    parallel_spans(num_heads * shares, 1, [&](int64_t begin, int64_t end) {
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
                copy_rows<T>({x + token * x_token + head * x_head, x_token}, M, num_in, rows);
                product<false, O>({rows.data, inner}, M, {panels, PANEL * inner}, count, sums, inner);
                T* const to = out + token * out_token + head * out_head;
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t n = 0; n < count; n += LANES)
                        store_to(to + m * out_token, first + n, num_out, load(sums.row(m) + n));
            }
        }
    });
}

}  // namespace

#define DEFINE(NAME, T)                                                                                               \
    extern "C" void NAME(const T* x, int64_t x_token, int64_t x_head, const native::Operand<T>::type* weight, T* out, \
                         int64_t out_token, int64_t out_head, int64_t num_tokens, int64_t num_heads, int64_t num_in,  \
                         int64_t num_out, int64_t inner) {                                                            \
        head_linear(x, x_token, x_head, weight, out, out_token, out_head, num_tokens, num_heads, num_in, num_out,     \
                    inner);                                                                                           \
    }

DEFINE(head_linear_bf16, native::bf16)
DEFINE(head_linear_f32, float)
