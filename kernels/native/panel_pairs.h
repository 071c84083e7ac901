// Products of rows with packed weights, shared out to threads by pairs of panels: what linear layers and experts are.
//
// A task computes all rows for some pairs, 32 rows at a time, so that a weight is read from memory once; while the
// first rows are computed, the thread's next pair is fetched. What follows on the sums is the caller's epilogue.
#pragma once

#include "matmul.h"

namespace native {

constexpr int64_t BLOCK = 32;  // rows and columns computed at a time

// task(first, last, next) for spans that together are 0 to num_pairs. Spans are short, so that threads end together: of
// 18 pairs in 16 spans, one of two threads would get 10, as two spans have two. `next` is the pair at which the thread
// will go on, if all are equally fast.
template <typename Task>
void parallel_pairs(int64_t num_pairs, const Task& task) {
    const int64_t threads = num_threads(), count = std::min<int64_t>(num_pairs, 16 * threads);
    const auto begin = [=](int64_t i) { return num_pairs * i / count; };
    parallel(count, [&](int64_t i) { task(begin(i), begin(i + 1), begin(std::min(i + threads, count - 1))); });
}

// The operands of one product: rows, and one or two panels that follow each other. B may be narrower than what the rows
// are multiplied with: int8 that stands for floats.
template <typename A, typename B = Weight<A>>
struct Pair {
    typedef native::Sum<A> Sum;
    static constexpr bool IS_GROUPED = false;  // as Tiles wants to know it
    Matrix<const A> rows;
    int64_t num_rows;
    const B* panels;
    int64_t num_panels, K;

    // The panels as the rows are multiplied with: where they lie, or made wide in cache.
    Matrix<const Weight<A>> unpacked() const {
        const int64_t size = K * PANEL;
        if constexpr (std::is_same_v<B, Weight<A>>) {
            return {panels, size};
        } else {
            A* const copy = reinterpret_cast<A*>(scratch(2 * size * sizeof(A)));
            for (int64_t i = 0; i < num_panels * size; i += LANES) store(copy + i, load(panels + i));
            return {copy, size};
        }
    }

    // The sums of M rows from `row` on. Where there is a next pair, it is fetched on the way.
    void multiply(Matrix<const Weight<A>> unpacked, int64_t row, int64_t M, Sum* sums, const Pair* next) const {
        const char* const piece = reinterpret_cast<const char*>(next ? next->panels : nullptr);
        Ahead ahead{};
        if (next && (num_rows > 1 || !std::is_same_v<A, float>))  // one row of fp32 is slower with it
            ahead = {&piece, 1, next->num_panels * K * PANEL * int64_t(sizeof(B)),
                     unpacked.data == static_cast<const void*>(panels)};
        product<false, A>(rows.from(row), M, unpacked, num_panels * PANEL, {sums, BLOCK}, K, ahead);
    }
};

// epilogue(i, row, M, sums[M][32]) for each M <= 32 rows from `row` on of each product pair_at(i): a Pair, or what has
// its functions.
template <typename PairAt, typename Epilogue>
void multiply_pairs(int64_t num_pairs, const PairAt& pair_at, const Epilogue& epilogue) {
    typedef decltype(pair_at(0)) PairType;
    typedef typename PairType::Sum Sum;
    parallel_pairs(num_pairs, [&](int64_t begin, int64_t end, int64_t next_pair) {
        const Tiles tiles(PairType::IS_GROUPED);
        alignas(64) Sum sums[BLOCK * BLOCK];
        for (int64_t i = begin; i < end; ++i) {
            const auto pair = pair_at(i), next = pair_at(i + 1 < end ? i + 1 : next_pair);
            const auto unpacked = pair.unpacked();
            for (int64_t row = 0; row < pair.num_rows; row += BLOCK) {
                const int64_t M = std::min(BLOCK, pair.num_rows - row);
                pair.multiply(unpacked, row, M, sums, row ? nullptr : &next);
                epilogue(i, row, M, sums);
            }
        }
    });
}

// A panel's sums of M rows to y, which has `width` columns: value(sums, row, column) are 16 of them.
template <typename S, typename Y, typename Value>
inline void store_panel(const S* sums, int64_t row, int64_t M, int64_t column, int64_t width, Matrix<Y> y,
                        const Value& value) {
    if (column + PANEL <= width)
        for (int64_t m = 0; m < M; ++m) store(y.row(row + m) + column, value(sums + m * BLOCK, row + m, column));
    else
        for (int64_t m = 0; m < M; ++m)
            store_to(y.row(row + m), column, width, value(sums + m * BLOCK, row + m, column));
}

// y[num_rows, N] of a packed weight [N, size].
template <typename A, typename B, typename Y, typename Value>
void multiply_weight(Matrix<const A> rows, int64_t num_rows, const B* weight, int64_t size, int64_t N, Y* y,
                     const Value& value) {
    const int64_t K = padded<A>(size), num_panels = (N + PANEL - 1) / PANEL;
    const auto pair_at = [&](int64_t i) {
        return Pair<A, B>{rows, num_rows, weight + 2 * i * K * PANEL, std::min<int64_t>(2, num_panels - 2 * i), K};
    };
    multiply_pairs((num_panels + 1) / 2, pair_at, [&](int64_t i, int64_t row, int64_t M, const Sum<A>* sums) {
        for (int64_t column = i * BLOCK; column < std::min((i + 1) * BLOCK, N); column += PANEL)
            store_panel(sums + column - i * BLOCK, row, M, column, N, Matrix<Y>{y, N}, value);
    });
}

// Rows whose number and length are whole tiles; `x` itself where it is so already.
template <typename A, typename X>
Matrix<const A> whole_rows(const X* x, int64_t stride, int64_t num_rows, int64_t size) {
    const int64_t K = padded<A>(size);
    if constexpr (std::is_same_v<X, A>)
        if (num_rows % ROWS == 0 && K == size) return {x, stride};
    static thread_local Scratch<A> copy;
    A* const to = copy.room(round_up(num_rows, ROWS) * K);
    parallel_rows(num_rows, 32, [&](int64_t row) {
        for (int64_t k = 0; k < size; k += LANES) store_to(to + row * K, k, size, load_from(x + row * stride, k, size));
        std::memset(to + row * K + size, 0, (K - size) * sizeof(A));
    });
    return {to, K};
}

}  // namespace native
