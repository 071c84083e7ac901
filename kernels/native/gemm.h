// Products of a few rows with a packed weight, in bf16, u8 x s8 or fp32: what linear layers and experts are made of.
//
// A weight [N, K] lies in panels of 16 of its rows (columns of the product), as AMX, vdpbf16ps and vpdpbusd want them:
// [N / 16][K / GROUP][16][GROUP], GROUP values in 32 bits: 2 in bf16, 4 in int8, 1 in fp32. K is padded with zeros to
// tiles of 16 groups, N to panels. The rows A are padded likewise, in memory of the kernel's own. The order in which a
// value's products are added depends on K alone, so a row's result is the same whichever rows are computed beside it.
#pragma once

#include "panels.h"
#include "pool.h"
#include "scratch.h"

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

namespace native {

template <typename A>
struct Operands;
template <>
struct Operands<bf16> {
    typedef bf16 Weight;
    typedef float Sum;
};
template <>
struct Operands<float> {
    typedef float Weight;
    typedef float Sum;
};
template <>
struct Operands<uint8_t> {
    typedef int8_t Weight;
    typedef int32_t Sum;
};

constexpr int64_t PANEL = 16;  // columns
constexpr int64_t BLOCK = 32;  // rows and columns computed at a time
template <typename A>
constexpr int64_t GROUP = 4 / sizeof(A);
template <typename A>
constexpr int64_t TILE_K = 16 * GROUP<A>;

template <typename A>
int64_t padded(int64_t K) {
    return round_up(K, TILE_K<A>);
}

// weight [N, K] to panels; `first` says which panel the first row goes to and `step` how many panels lie between two of
// this weight's (so that two weights can be interleaved).
template <typename A>
void pack(const typename Operands<A>::Weight* weight, int64_t N, int64_t K, typename Operands<A>::Weight* out,
          int64_t first, int64_t step) {
    typedef typename Operands<A>::Weight B;
    const int64_t size = padded<A>(K) * PANEL, whole = K / GROUP<A>;
    parallel_spans((N + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            B* const to = out + (first + panel * step) * size;
            std::memset(to, 0, size * sizeof(B));
            const int64_t count = std::min(PANEL, N - panel * PANEL);
            for (int64_t n = 0; n < count; ++n) {
                const B* from = weight + (panel * PANEL + n) * K;
                for (int64_t g = 0; g < whole; ++g)
                    std::memcpy(to + (g * PANEL + n) * GROUP<A>, from + g * GROUP<A>, 4);
                std::memcpy(to + (whole * PANEL + n) * GROUP<A>, from + whole * GROUP<A>,
                            (K - whole * GROUP<A>)*sizeof(B));
            }
        }
    });
}

// M rows and one panel of fp32, or both panels where the registers hold their sums.
template <int M>
inline void multiply_rows(const float* a, int64_t lda, const float* b0, const float* b1, int64_t K, float* sums) {
    v16 left[M] = {}, right[M] = {};
    for (int64_t k = 0; k < K; ++k) {
        const v16 p = load(b0 + k * PANEL), q = load(b1 + k * PANEL);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            left[m] += p * a[m * lda + k];
            right[m] += q * a[m * lda + k];
        }
    }
    for (int m = 0; m < M; ++m) {
        store(sums + m * BLOCK, left[m]);
        store(sums + m * BLOCK + PANEL, right[m]);
    }
}

inline void multiply(const float* a, int64_t lda, int64_t M, const float* b0, const float* b1, int64_t K, float* sums,
                     const float*) {
#if defined(__AVX512F__)
    constexpr int MOST = 8;  // rows whose sums fit the registers
#else
    constexpr int MOST = 2;
#endif
    int64_t m = 0;
    for (; m + MOST <= M; m += MOST) multiply_rows<MOST>(a + m * lda, lda, b0, b1, K, sums + m * BLOCK);
    for (; m + 2 <= M; m += 2) multiply_rows<2>(a + m * lda, lda, b0, b1, K, sums + m * BLOCK);
    if (m < M) multiply_rows<1>(a + m * lda, lda, b0, b1, K, sums + m * BLOCK);
}

// multiply: sums[M][32] of M <= 32 rows and two panels; A has memory for a multiple of 16 rows, and the thread holds
// Tiles. `next` is null unless the panels come from memory: then two panels that will be wanted soon.

#if defined(__AMX_BF16__)

#define NATIVE_TILE_PRODUCT(c, a, b) \
    if constexpr (sizeof(A) == 1)    \
        _tile_dpbusd(c, a, b);       \
    else                             \
        _tile_dpbf16ps(c, a, b)

template <typename A>
inline void multiply(const A* a, int64_t lda, int64_t M, const typename Operands<A>::Weight* b0,
                     const typename Operands<A>::Weight* b1, int64_t K, typename Operands<A>::Sum* sums,
                     const typename Operands<A>::Weight* next) {
    const int64_t stride = lda * sizeof(A);
    _tile_zero(0);
    _tile_zero(1);
    if (M > 16) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += TILE_K<A>) {
        if (next)  // the processor's own prefetching is too late for tiles
            for (int64_t line = 0; line < 1024; line += 64) {
                _mm_prefetch((const char*)(b0 + (k + TILE_K<A>)*PANEL) + line, _MM_HINT_T0);
                _mm_prefetch((const char*)(b1 + (k + TILE_K<A>)*PANEL) + line, _MM_HINT_T0);
            }
        _tile_loadd(6, b0 + k * PANEL, 64);
        _tile_loadd(7, b1 + k * PANEL, 64);
        _tile_loadd(4, a + k, stride);
        NATIVE_TILE_PRODUCT(0, 4, 6);
        NATIVE_TILE_PRODUCT(1, 4, 7);
        if (M > 16) {
            _tile_loadd(5, a + 16 * lda + k, stride);
            NATIVE_TILE_PRODUCT(2, 5, 6);
            NATIVE_TILE_PRODUCT(3, 5, 7);
        }
    }
    _tile_stored(0, sums, BLOCK * 4);
    _tile_stored(1, sums + 16, BLOCK * 4);
    if (M > 16) {
        _tile_stored(2, sums + 16 * BLOCK, BLOCK * 4);
        _tile_stored(3, sums + 16 * BLOCK + 16, BLOCK * 4);
    }
}

#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__)

inline __m512 add_products(__m512 sum, __m512i a, __m512i b, const bf16*) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
inline __m512i add_products(__m512i sum, __m512i a, __m512i b, const uint8_t*) {
    return _mm512_dpbusd_epi32(sum, a, b);
}
inline __m512 zero(const bf16*) { return _mm512_setzero_ps(); }
inline __m512i zero(const uint8_t*) { return _mm512_setzero_si512(); }

// In each step `step` bytes from `ahead` on are fetched into the second cache.
template <int M, typename A>
inline void multiply_rows(const A* a, int64_t lda, const typename Operands<A>::Weight* b0,
                          const typename Operands<A>::Weight* b1, int64_t K, typename Operands<A>::Sum* sums,
                          const char* ahead, int64_t step) {
    decltype(zero(a)) left[M], right[M];  // in registers, if all loops over rows are unrolled
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) left[m] = right[m] = zero(a);
    for (int64_t k = 0; k < K; k += GROUP<A>) {
        if (step) {
            _mm_prefetch(ahead, _MM_HINT_T1);
            if (step > 64) _mm_prefetch(ahead + 64, _MM_HINT_T1);
            ahead += step;
        }
        const __m512i p = _mm512_loadu_si512(b0 + k * PANEL), q = _mm512_loadu_si512(b1 + k * PANEL);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            int32_t group;
            std::memcpy(&group, a + m * lda + k, sizeof group);
            const __m512i x = _mm512_set1_epi32(group);
            left[m] = add_products(left[m], x, p, a);
            right[m] = add_products(right[m], x, q, a);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        _mm512_storeu_si512(sums + m * BLOCK, (__m512i)left[m]);
        _mm512_storeu_si512(sums + m * BLOCK + PANEL, (__m512i)right[m]);
    }
}

// While some rows are multiplied, their share of the next panels is fetched, so that memory is read all the time.
template <typename A>
inline void multiply(const A* a, int64_t lda, int64_t M, const typename Operands<A>::Weight* b0,
                     const typename Operands<A>::Weight* b1, int64_t K, typename Operands<A>::Sum* sums,
                     const typename Operands<A>::Weight* next) {
    if (M % 4 == 3) ++M;  // one row more costs less than a part of one row, which waits for its own sums
    const int64_t row = next ? 2 * K * PANEL * sizeof(*next) / M : 0, steps = K / GROUP<A>;
    int64_t m = 0;
    const auto rows = [&](auto count) {
        multiply_rows<count>(a + m * lda, lda, b0, b1, K, sums + m * BLOCK, (const char*)next + m * row,
                             (count * row + steps - 1) / steps);
        m += count;
    };
    while (M - m >= 8) rows(std::integral_constant<int, 8>());
    if (M - m >= 4) rows(std::integral_constant<int, 4>());
    if (M - m >= 2) rows(std::integral_constant<int, 2>());
    if (M - m >= 1) rows(std::integral_constant<int, 1>());
}

#else

// M rows and one panel, bf16 widened to fp32: the low and the high half of each 32 bits are two values of a column.
template <int M>
inline void multiply_rows(const bf16* a, int64_t lda, const bf16* b, int64_t K, float* sums) {
    v16 sum[M] = {};
    for (int64_t k = 0; k < K; k += 2) {
        u16x pairs;
        std::memcpy(&pairs, b + k * PANEL, sizeof pairs);
        const v16 even = (v16)(pairs << 16), odd = (v16)(pairs & 0xffff0000u);
        for (int m = 0; m < M; ++m) sum[m] += even * load1(a + m * lda + k) + odd * load1(a + m * lda + k + 1);
    }
    for (int m = 0; m < M; ++m) store(sums + m * BLOCK, sum[m]);
}

// M rows and one panel in 16-bit products, which are exact (vpmaddubsw, which takes bytes, would saturate). Each column
// has two of a register's sums, added at the end.
template <int M>
inline void multiply_rows(const uint8_t* a, int64_t lda, const int8_t* b, int64_t K, int32_t* sums) {
    __m256i sum[M][4];
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < 4; ++i) sum[m][i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < K; k += 4) {
        __m256i columns[4];
        for (int i = 0; i < 4; ++i)
            columns[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(b + k * PANEL + 16 * i)));
        for (int m = 0; m < M; ++m) {
            int32_t group;
            std::memcpy(&group, a + m * lda + k, sizeof group);
            const __m256i x = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(group)));
            for (int i = 0; i < 4; ++i) sum[m][i] = _mm256_add_epi32(sum[m][i], _mm256_madd_epi16(x, columns[i]));
        }
    }
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < 4; ++i) {
            const __m256i pairs = _mm256_hadd_epi32(sum[m][i], sum[m][i]);
            _mm_storeu_si128((__m128i*)(sums + m * BLOCK + 4 * i),
                             _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
        }
}

template <typename A>
inline void multiply(const A* a, int64_t lda, int64_t M, const typename Operands<A>::Weight* b0,
                     const typename Operands<A>::Weight* b1, int64_t K, typename Operands<A>::Sum* sums,
                     const typename Operands<A>::Weight*) {
    constexpr int MOST = sizeof(A) == 1 ? 2 : 4;  // rows whose sums fit the registers
    if (M % MOST > 1) M = round_up(M, MOST);      // as they take less time than one after another
    for (int half = 0; half < 2; ++half) {
        const typename Operands<A>::Weight* b = half ? b1 : b0;
        typename Operands<A>::Sum* to = sums + half * PANEL;
        int64_t m = 0;
        for (; m + MOST <= M; m += MOST) multiply_rows<MOST>(a + m * lda, lda, b, K, to + m * BLOCK);
        for (; m < M; ++m) multiply_rows<1>(a + m * lda, lda, b, K, to + m * BLOCK);
    }
}

#endif

// task(first, last, next) for spans that together are 0 to num_pairs; a pair is two panels that are multiplied at once.
// Spans are short, so that threads end together: of 18 pairs in 16 spans, one of two threads would get 10, as two spans
// have two. `next` is the pair at which the thread will go on, if all are equally fast: to be fetched while the last
// one is computed.
template <typename Task>
void parallel_pairs(int64_t num_pairs, const Task& task) {
    const int64_t threads = num_threads(), count = std::min<int64_t>(num_pairs, 16 * threads);
    const auto begin = [=](int64_t i) { return num_pairs * i / count; };
    parallel(count, [&](int64_t i) { task(begin(i), begin(i + 1), begin(std::min(i + threads, count - 1))); });
}

// Rows whose number and length are whole tiles; `x` itself where it is so already.
template <typename A>
struct Whole {
    const A* rows;
    int64_t stride;
};

template <typename X, typename A>
Whole<A> whole_rows(const X* x, int64_t stride, int64_t num_rows, int64_t size) {
    const int64_t K = padded<A>(size);
    if constexpr (std::is_same_v<X, A>)
        if (num_rows % 16 == 0 && K == size) return {x, stride};
    static thread_local Scratch<A> copy;
    A* const to = copy.room(round_up(num_rows, 16) * K);
    parallel_spans(num_rows, 32, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t k = 0; k < size; k += LANES)
                store_to(to + row * K, k, size, load_from(x + row * stride, k, size));
            std::memset(to + row * K + size, 0, (K - size) * sizeof(A));
        }
    });
    return {to, K};
}

// How a row was made uint8: x is about scale * (x_q - zero).
struct Grid {
    float scale;
    int32_t zero;
};

// The sums of a panel to numbers: those of bf16 and fp32 are numbers already.
template <typename A>
struct Scaling {
    Scaling(const float*, const int32_t*, int64_t) {}
    v16 operator()(const float* sums, const Grid*) const { return load(sums); }
};

template <>
struct Scaling<uint8_t> {
    v16 scales;
    i16x totals;  // sums of each column's weights

    Scaling(const float* all_scales, const int32_t* all_totals, int64_t column) : scales(load(all_scales + column)) {
        std::memcpy(&totals, all_totals + column, sizeof totals);
    }
    v16 operator()(const int32_t* sums, const Grid* grid) const {  // of a row made uint8 on this grid
        i16x sum;
        std::memcpy(&sum, sums, sizeof sum);
        return __builtin_convertvector(sum - totals * grid->zero, v16) * grid->scale * scales;
    }
};

// A row to uint8, padded to K, on its own range widened to hold 0 (or on `given`, if its scale is not 0). A row that
// is not finite gets a NaN scale.
template <typename T>
inline Grid quantize_row(const T* x, int64_t size, int64_t K, uint8_t* out, Grid given) {
    const int64_t whole = size / LANES * LANES;
    Grid grid = given;
    if (given.scale == 0) {
        v16 low{}, high{}, check{};
        for (int64_t i = 0; i < whole; i += LANES) {
            const v16 v = load(x + i);
            low = min(v, low);
            high = max(v, high);
            check += v * 0.0f;
        }
        float lowest = -max(-low), highest = max(high), rest = sum(check);
        for (int64_t i = whole; i < size; ++i) {
            const float v = load1(x + i);
            lowest = v < lowest ? v : lowest;
            highest = v > highest ? v : highest;
            rest += v * 0.0f;
        }
        const float scale = (highest - lowest) / 255.0f;
        grid.scale = (scale > 1e-30f ? scale : 1e-30f) + rest;
        grid.zero = rest == 0 ? int32_t(__builtin_rintf(-lowest * (1.0f / grid.scale))) : 0;
    }
    const float inverse = 1.0f / grid.scale;
    v16 check{};  // NaN if x is not finite: then the row's results must not be
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 v = load(x + i) * inverse;
        check += v * 0.0f;
        store_uint8(out + i, min(max(v, splat(-1e6f)), splat(1e6f)), grid.zero);
    }
    for (int64_t i = whole; i < size; ++i) {
        float v = load1(x + i) * inverse;
        check[0] += v * 0.0f;
        v = v < -1e6f ? -1e6f : v > 1e6f ? 1e6f : v;
        const int32_t q = v == v ? int32_t(__builtin_rintf(v)) + grid.zero : 0;
        out[i] = uint8_t(q < 0 ? 0 : q > 255 ? 255 : q);
    }
    std::memset(out + size, 0, K - size);
    grid.scale += sum(check);
    return grid;
}

}  // namespace native
