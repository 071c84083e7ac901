// Matrix products of rows with panels (panels.h): C[M, N] = A[M, K] B[K, N], set or added, in fp32 (uint8 rows: int32).
//
// They run in AMX tiles (amx.h) or in blocks of a few rows by one or two panels whose sums stay in registers. The order
// in which a value's products are added depends on K alone, so a row's result is the same whichever rows are computed
// beside it.
#pragma once

#include "amx.h"
#include "multiply_add.h"

#include <type_traits>
#include <utility>

namespace native {

constexpr int64_t ROWS = 16;  // A and C must have memory for a multiple of so many rows

// What a product fetches on its way: pieces of memory of `size` bytes each that will be read soon, into the second
// cache, so that memory is read all the time. AMX leaves no time for that: it fetches B itself, if B is `in_memory`.
struct Ahead {
    const char* const* pieces;
    int64_t num_pieces, size;
    bool in_memory = false;
};

// Deals out what is to be fetched to blocks, by their rows times panels.
class Shares {
 public:
    Shares(const Ahead& ahead, int64_t rows, int64_t panels)
        : ahead(ahead), bytes(ahead.num_pieces ? ahead.num_pieces * ahead.size / (rows * panels) : 0) {}

    // Where a block of some rows times panels begins, and how many bytes it fetches in each of its steps.
    std::pair<const char*, int64_t> next(int64_t size, int64_t steps) {
        if (!bytes || piece >= ahead.num_pieces) return {nullptr, 0};
        const char* const from = ahead.pieces[piece] + offset;
        const int64_t count = std::min(size * bytes, ahead.size - offset);
        for (offset += size * bytes; offset >= ahead.size; offset -= ahead.size) ++piece;
        return {from, (count + steps - 1) / steps};
    }

 private:
    const Ahead& ahead;
    const int64_t bytes;  // for a row and a panel
    int64_t piece = 0, offset = 0;
};

// M rows by P panels; columns(g, p) are the 16 columns of a panel's group g. Where it does not ADD, C is set. Inlined,
// so that what `columns` holds is in registers.
template <int M, int P, bool ADD, typename A, typename Columns>
__attribute__((always_inline)) inline void block(Matrix<const A> a, int64_t num_groups, Matrix<Sum<A>> c,
                                                 const Columns& columns) {
    typename Step<A>::Sums sums[M][P];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sums[m][p] = ADD ? Step<A>::load(c.row(m) + p * PANEL) : typename Step<A>::Sums{};
    for (int64_t g = 0; g < num_groups; ++g)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const auto own = columns(g, p);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sums[m][p] = Step<A>::add(sums[m][p], a.row(m) + g * GROUP<A>, own);
        }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) Step<A>::store(c.row(m) + p * PANEL, sums[m][p]);
}

// All rows by P panels.
template <int P, bool ADD, typename A>
__attribute__((always_inline)) inline void multiply_panels(Matrix<const A> a, int64_t M, Matrix<const Weight<A>> b,
                                                           Matrix<Sum<A>> c, int64_t K, Shares& shares) {
    constexpr int MOST = Step<A>::ROWS;
    const int64_t num_groups = K / GROUP<A>;
    int64_t m = 0;
    const auto rows = [&](auto count) {
        const auto [from, step] = shares.next(count * P, num_groups);
        block<count, P, ADD, A>(a.from(m), num_groups, c.from(m), [b, from = from, step = step](int64_t g, int p) {
            if (step && p == 0) {
                _mm_prefetch(from + g * step, _MM_HINT_T1);
                if (step > 64) _mm_prefetch(from + g * step + 64, _MM_HINT_T1);
            }
            return Step<A>::columns(b.row(p) + g * GROUP<A> * PANEL);
        });
        m += count;
    };
    while (M - m >= MOST) rows(std::integral_constant<int, MOST>());
    if constexpr (MOST > 4)
        if (M - m >= 4) rows(std::integral_constant<int, 4>());
    if constexpr (MOST > 2)
        if (M - m >= 2) rows(std::integral_constant<int, 2>());
    if (M - m >= 1) rows(std::integral_constant<int, 1>());
}

#if defined(__AMX_BF16__)

template <bool ADD, typename A>
inline void multiply_tiles(Matrix<const A> a, int64_t M, Matrix<const Weight<A>> b, int64_t N, Matrix<Sum<A>> c,
                           int64_t K, bool fetches) {
    for (int64_t m = 0; m < M; m += 32)
        for (int64_t n = 0; n < N; n += 32) {
            const Matrix<const Weight<A>> panels = b.from(n / PANEL);
            const Matrix<Sum<A>> sums{c.row(m) + n, c.stride};
            if (M - m > 16)
                N - n > 16 ? tile_block<2, 2, ADD, A>(a.from(m), panels, sums, K, fetches)
                           : tile_block<2, 1, ADD, A>(a.from(m), panels, sums, K, fetches);
            else
                N - n > 16 ? tile_block<1, 2, ADD, A>(a.from(m), panels, sums, K, fetches)
                           : tile_block<1, 1, ADD, A>(a.from(m), panels, sums, K, fetches);
        }
}

#endif

// N a multiple of 16, K one of what `padded` gives. The caller's thread holds Tiles.
template <bool ADD, typename A>
__attribute__((always_inline)) inline void product(Matrix<const A> a, int64_t M, Matrix<const Weight<A>> b, int64_t N,
                                                   Matrix<Sum<A>> c, int64_t K, const Ahead& ahead = {}) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(A) < 4) return multiply_tiles<ADD, A>(a, M, b, N, c, K, ahead.in_memory);
#endif
    constexpr int64_t COLUMNS = Step<A>::PANELS * PANEL;
    // One row more costs less than a part of one row, which waits for its own sums.
    if (Step<A>::ROWS > 2 && M % 4 == 3) ++M;
    Shares shares(ahead, M, N / PANEL);
    int64_t n = 0;
    for (; n + COLUMNS <= N; n += COLUMNS)
        multiply_panels<Step<A>::PANELS, ADD, A>(a, M, b.from(n / PANEL), {c.data + n, c.stride}, K, shares);
    if (n < N) multiply_panels<1, ADD, A>(a, M, b.from(n / PANEL), {c.data + n, c.stride}, K, shares);
}

}  // namespace native
