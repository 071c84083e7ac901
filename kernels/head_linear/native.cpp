// head_linear on a CPU. Contract: kernels/head_linear/__init__.py.
#include "../native/panels.h"
#include "../native/pool.h"
#include "../native/scratch.h"

#include <algorithm>
#include <type_traits>

namespace {

using namespace native;

constexpr int64_t COLUMNS = 128;   // a thread's share of a head
constexpr int64_t ROW_BLOCK = 64;  // rows whose sums are held at a time

// weight: panels [heads][M / 16][K / W][16][W], K and M rounded up to `inner` and 16.
template <typename T>
void head_linear(const T* x, int64_t x_token, int64_t x_head, const typename Operand<T>::type* weight, T* out,
                 int64_t out_token, int64_t out_head, int64_t num_tokens, int64_t num_heads, int64_t num_in,
                 int64_t num_out, int64_t inner) {
    typedef typename Operand<T>::type O;
    const int64_t columns = round_up(num_out, LANES), shares = (columns + COLUMNS - 1) / COLUMNS;
    parallel_spans(num_heads * shares, 1, [&](int64_t begin, int64_t end) {
        const Tiles tiles;
        for (int64_t share = begin; share < end; ++share) {
            const int64_t head = share / shares, first = share % shares * COLUMNS,
                          count = std::min(COLUMNS, columns - first);
            O* rows = reinterpret_cast<O*>(scratch(ROW_BLOCK * (inner * sizeof(O) + COLUMNS * sizeof(float))));
            float* sums = reinterpret_cast<float*>(rows + ROW_BLOCK * inner);
            const O* panels = weight + (head * columns + first) * inner;
            for (int64_t token = 0; token < num_tokens; token += ROW_BLOCK) {
                const int64_t M = std::min(ROW_BLOCK, num_tokens - token);
                std::memset(rows, 0, round_up(M, ROWS) * inner * sizeof(O));
                for (int64_t m = 0; m < M; ++m) {
                    const T* from = x + (token + m) * x_token + head * x_head;
                    if constexpr (std::is_same_v<T, O>)
                        std::memcpy(rows + m * inner, from, num_in * sizeof(O));
                    else
                        for (int64_t k = 0; k < num_in; k += LANES)
                            store(rows + m * inner + k, load_from(from, k, num_in));
                }
                product(rows, inner, panels, 16 * inner, sums, COLUMNS, M, count, inner, false);
                for (int64_t m = 0; m < M; ++m)
                    for (int64_t n = 0; n < count; n += LANES)
                        store_to(out + (token + m) * out_token + head * out_head, first + n, num_out,
                                 load(sums + m * COLUMNS + n));
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
