// Small matrix products for kernels that hold their operands in cache: C[M, N] (+)= A[M, K] B[K, N].
//
// A is row-major. B lies in panels of 16 columns, as AMX and vdpbf16ps want it: [N / 16][K / W][16][W] with W = 2
// values in bf16 and 1 in fp32. C is row-major fp32. The order in which a value's products are added depends on K
// alone, so a row's result is the same whichever rows are computed beside it.
#pragma once

#include "common.h"

#include <type_traits>

namespace native {

#if defined(__AVX512BF16__)
typedef bf16 Narrow;  // what products of bf16 operands are computed from
#else
typedef float Narrow;
#endif

template <typename T>
struct Operand {
    typedef float type;
};
template <>
struct Operand<bf16> {
    typedef Narrow type;
};

template <typename T>
constexpr int64_t WIDTH = sizeof(float) / sizeof(T);  // W

// Pieces of memory that a product fetches into the second cache on its way, unless it has few rows. AMX leaves no time
// for it.
struct Ahead {
    const char* const* pieces;
    int64_t num_pieces, size;  // in bytes
};
constexpr int64_t ROWS = 16;  // A and C must have memory for a multiple of so many rows

#if defined(__AMX_BF16__)

// While one lives, its thread's tiles are of 16 rows of 64 bytes.
struct Tiles {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
    Tiles() {
        Config config;
        for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

// MT x NT tiles of C; the tile registers are 0-3 for C, 4-5 for A, 6-7 for B.
template <int MT, int NT>
inline void tiles(const bf16* a, int64_t lda, const bf16* b, int64_t panel, float* c, int64_t ldc, int64_t K,
                  bool add) {
    const int64_t a_bytes = lda * 2, c_bytes = ldc * 4;
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if constexpr (NT > 1) _tile_loadd(1, c + 16, c_bytes);
        if constexpr (MT > 1) _tile_loadd(2, c + 16 * ldc, c_bytes);
        if constexpr (MT > 1 && NT > 1) _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
    } else {
        _tile_zero(0);
        if constexpr (NT > 1) _tile_zero(1);
        if constexpr (MT > 1) _tile_zero(2);
        if constexpr (MT > 1 && NT > 1) _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += 32) {
        _tile_loadd(4, a + k, a_bytes);
        _tile_loadd(6, b + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (MT > 1) {
            _tile_loadd(5, a + 16 * lda + k, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (NT > 1) {
            _tile_loadd(7, b + panel + k * 16, 64);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (MT > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (NT > 1) _tile_stored(1, c + 16, c_bytes);
    if constexpr (MT > 1) _tile_stored(2, c + 16 * ldc, c_bytes);
    if constexpr (MT > 1 && NT > 1) _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}

// K a multiple of 32. The caller's thread holds Tiles.
inline void product(const bf16* a, int64_t lda, const bf16* b, int64_t panel, float* c, int64_t ldc, int64_t M,
                    int64_t N, int64_t K, bool add, const Ahead& = {}) {
    for (int64_t m = 0; m < M; m += 32) {
        const bf16* rows = a + m * lda;
        for (int64_t n = 0; n < N; n += 32) {
            const bf16* columns = b + n / 16 * panel;
            float* out = c + m * ldc + n;
            if (M - m > 16)
                N - n > 16 ? tiles<2, 2>(rows, lda, columns, panel, out, ldc, K, add)
                           : tiles<2, 1>(rows, lda, columns, panel, out, ldc, K, add);
            else
                N - n > 16 ? tiles<1, 2>(rows, lda, columns, panel, out, ldc, K, add)
                           : tiles<1, 1>(rows, lda, columns, panel, out, ldc, K, add);
        }
    }
}

#else

struct Tiles {
    Tiles() {}
};

#endif

// 16 dwords of a panel: 16 values of fp32, 32 of bf16.
template <typename T>
inline u16x dwords(const T* b) {
    u16x x;
    std::memcpy(&x, b, sizeof x);
    return x;
}

// Fused for certain: left to the compiler, it is so in some loops and not in others, and a row's bits hang on its
// block.
inline v16 multiply_add(v16 sum, const float* a, u16x b) {
#if defined(__AVX512F__)
    return (v16)_mm512_fmadd_ps(_mm512_set1_ps(*a), (__m512)b, (__m512)sum);
#else
    const __m256 factor = _mm256_broadcast_ss(a);
    __m256 half[2], by[2];
    std::memcpy(half, &sum, sizeof half);
    std::memcpy(by, &b, sizeof by);
    half[0] = _mm256_fmadd_ps(factor, by[0], half[0]);
    half[1] = _mm256_fmadd_ps(factor, by[1], half[1]);
    std::memcpy(&sum, half, sizeof sum);
    return sum;
#endif
}

#if defined(__AVX512BF16__)
inline v16 multiply_add(v16 sum, const bf16* a, u16x b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
}
#endif

// M rows of C by P panels, held in registers; `bytes` from `ahead` on are fetched.
template <int M, int P, typename T>
inline void block(const T* a, int64_t lda, const T* b, int64_t panel, float* c, int64_t ldc, int64_t K, bool add,
                  const char* ahead, int64_t bytes) {
    v16 sum[M][P];
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) sum[m][p] = add ? load(c + m * ldc + p * LANES) : v16{};
    const int64_t step = (bytes * WIDTH<T> + K - 1) / K;
    for (int64_t k = 0; k < K; k += WIDTH<T>) {
        if (bytes) {
            _mm_prefetch(ahead, _MM_HINT_T1);
            ahead += step;
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                sum[m][p] = multiply_add(sum[m][p], a + m * lda + k, dwords(b + p * panel + k * LANES));
    }
    for (int m = 0; m < M; ++m)
        for (int p = 0; p < P; ++p) store(c + m * ldc + p * LANES, sum[m][p]);
}

template <typename T>
inline void product(const T* a, int64_t lda, const T* b, int64_t panel, float* c, int64_t ldc, int64_t M, int64_t N,
                    int64_t K, bool add, const Ahead& ahead = {}) {
#if defined(__AVX512F__)
    constexpr int MOST = 8, PANELS = 2;  // of 32 registers: 16 sums
#else
    constexpr int MOST = 4, PANELS = 1;  // of 16, two for a v16: 8 sums
#endif
    constexpr int64_t COLUMNS = PANELS * LANES;
    const int64_t blocks_a_piece = ahead.num_pieces ? (M / MOST) * (N / COLUMNS) / ahead.num_pieces : 0;
    int64_t num_blocks = 0, m = 0;
    const auto rows = [&](auto count) {
        int64_t n = 0;
        for (; n + COLUMNS <= N; n += COLUMNS, ++num_blocks) {
            const int64_t piece = blocks_a_piece ? num_blocks / blocks_a_piece : ahead.num_pieces;
            const int64_t bytes = piece < ahead.num_pieces ? ahead.size / blocks_a_piece : 0;
            const char* from = bytes ? ahead.pieces[piece] + num_blocks % blocks_a_piece * bytes : nullptr;
            block<count, PANELS>(a + m * lda, lda, b + n / LANES * panel, panel, c + m * ldc + n, ldc, K, add, from,
                                 bytes);
        }
        for (; n < N; n += LANES)
            block<count, 1>(a + m * lda, lda, b + n / LANES * panel, panel, c + m * ldc + n, ldc, K, add, nullptr, 0);
        m += count;
    };
    while (M - m > MOST / 2) rows(std::integral_constant<int, MOST>());
    while (M - m > 1) rows(std::integral_constant<int, MOST / 2>());
    if (m < M) rows(std::integral_constant<int, 1>());
}

// The transpose of 16 rows of 16 values.
#if defined(__AVX512F__)
inline void transpose(
    u16x (&rows)[16]) {  // pairs, fours, then quarters of registers; instructions that overwrite no operand
    __m512i r[16], t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        rows[i] = (u16x)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = (u16x)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#else
inline void transpose(u16x (&rows)[16]) {  // four times the perfect shuffle of the rows' first half with their second
    for (int round = 0; round < 4; ++round) {
        u16x next[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            next[2 * i] =
                __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                      29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
}
#endif

}  // namespace native
