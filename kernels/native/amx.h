// Matrix products in AMX tiles of 16 rows of 64 bytes: registers 0-3 hold sums, 4-5 rows of A, 6-7 panels of B.
#pragma once

#include "panels.h"

namespace native {

#if defined(__AMX_BF16__)

// While one lives, its thread's tiles are whole. For products of groups of 32 (16) inputs of a byte, registers 4 and 6
// (5 and 7) hold so many of A's bytes and of B's rows.
struct Tiles {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };
    explicit Tiles(bool is_grouped = false) {
        Config config;
        for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
        if (is_grouped) config.row_bytes[4] = 32, config.row_bytes[5] = 16, config.rows[6] = 8, config.rows[7] = 4;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

// The instruction needs its registers' numbers as they stand.
#define NATIVE_TILE_PRODUCT(c, a, b)  \
    {                                 \
        if constexpr (sizeof(A) == 1) \
            _tile_dpbusd(c, a, b);    \
        else                          \
            _tile_dpbf16ps(c, a, b);  \
    }

// MT tiles of rows by NT panels. With `fetches` B comes from memory, for which the processor's own prefetching is too
// late: each tile is fetched a step ahead.
template <int MT, int NT, bool ADD, typename A>
inline void tile_block(Matrix<const A> a, Matrix<const Weight<A>> b, Matrix<Sum<A>> c, int64_t K, bool fetches) {
    const int64_t a_bytes = a.stride * sizeof(A), c_bytes = c.stride * 4;
    asm volatile("" ::: "memory");  // the compiler does not know that tile loads read what was stored before
    if constexpr (ADD) {
        _tile_loadd(0, c.data, c_bytes);
        if constexpr (NT > 1) _tile_loadd(1, c.data + 16, c_bytes);
        if constexpr (MT > 1) _tile_loadd(2, c.row(16), c_bytes);
        if constexpr (MT > 1 && NT > 1) _tile_loadd(3, c.row(16) + 16, c_bytes);
    } else {
        _tile_zero(0);
        if constexpr (NT > 1) _tile_zero(1);
        if constexpr (MT > 1) _tile_zero(2);
        if constexpr (MT > 1 && NT > 1) _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += TILE_K<A>) {
        if (fetches)
            for (int64_t line = 0; line < 1024; line += 64)
                for (int panel = 0; panel < NT; ++panel)
                    _mm_prefetch((const char*)(b.row(panel) + (k + TILE_K<A>)*PANEL) + line, _MM_HINT_T0);
        _tile_loadd(6, b.data + k * PANEL, 64);
        if constexpr (NT > 1) _tile_loadd(7, b.row(1) + k * PANEL, 64);
        _tile_loadd(4, a.data + k, a_bytes);
        NATIVE_TILE_PRODUCT(0, 4, 6)
        if constexpr (NT > 1) NATIVE_TILE_PRODUCT(1, 4, 7)
        if constexpr (MT > 1) {
            _tile_loadd(5, a.row(16) + k, a_bytes);
            NATIVE_TILE_PRODUCT(2, 5, 6)
            if constexpr (NT > 1) NATIVE_TILE_PRODUCT(3, 5, 7)
        }
    }
    _tile_stored(0, c.data, c_bytes);
    if constexpr (NT > 1) _tile_stored(1, c.data + 16, c_bytes);
    if constexpr (MT > 1) _tile_stored(2, c.row(16), c_bytes);
    if constexpr (MT > 1 && NT > 1) _tile_stored(3, c.row(16) + 16, c_bytes);
}

#undef NATIVE_TILE_PRODUCT

#else

struct Tiles {
    explicit Tiles(bool = false) {}
};

#endif

}  // namespace native
