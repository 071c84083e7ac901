// Products of rows made int8 with panels of blocks.
//
// Sums over a group are whole numbers, and floats are added in an order that depends on nothing but K: a row's result
// is the same whichever rows are computed beside it, by panels as they are packed or unpacked, and in AMX tiles.
#pragma once

#include "../native/panel_pairs.h"
#include "codes.h"

namespace native {

// A group's sums of products, as Dot has them, with its scale.
__attribute__((always_inline)) inline v16 scaled(v16 biased, v16 scale) {
    return multiply_add(scale * -BIAS, biased, scale);  // exact but for one rounding, as scales have 22 bits at most
}

// Lines of a panel's block.
template <typename F>
constexpr int64_t NUM_LINES = (PANEL * F::HEAD + F::VALUES / 32 * UNIT<F> + 63) / 64;

// Fetch as many lines as a block has while its steps (four inputs each) are computed: a burst of them would be waited
// for, and memory would rest meanwhile.
template <typename F>
__attribute__((always_inline)) inline void fetch_at(Fetch& fetch, int64_t step) {
    constexpr int64_t LINES = NUM_LINES<F>, STEPS = F::VALUES / 4;
    fetch.next((step + 1) * LINES / STEPS - step * LINES / STEPS);
}

// M rows of a tile by P panels. A sum's products are added in an order that is the same for every M and P.
template <typename F, int M, int P, bool FETCHES>
void multiply_rows(const BlockPanel* panels, const int8_t* x, const RowGroup* groups, int64_t tile_rows, float* sums,
                   const Fetch* fetch) {
    constexpr int X = INPUT_GROUP<F>, PARTS = X / F::GROUP;
    static_assert(PARTS == 1 || !F::HAS_MIN);
    const int64_t num_blocks = panels[0].num_blocks;
    const uint8_t *heads[P], *codes[P];
    Fetch next[P];
    for (int p = 0; p < P; ++p) heads[p] = panels[p].heads, codes[p] = panels[p].codes, next[p] = fetch[p];
    v16 totals[M][P] = {};
    for (int64_t b = 0; b < num_blocks; ++b) {
        v16 scales[P][NUM_GROUPS<F>], mins[P][NUM_GROUPS<F>];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) F::scales(heads[p], scales[p], mins[p]), heads[p] += PANEL * F::HEAD;
        for (int g = 0; g < NUM_GROUPS<F>; g += PARTS) {
            v16 values[M][P];
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) {
                Dot<most_of<F>()> dots[M][P];
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    const i16x from = i16x{} + (F::OFFSET ? groups[m].starts[part] : BIAS_BITS);
#pragma GCC unroll 2
                    for (int p = 0; p < P; ++p) dots[m][p].start(from);
                }
#pragma GCC unroll 32
                for (int step = 0; step < F::GROUP / 4; ++step) {
                    const int at = part * F::GROUP / 4 + step;
                    u16x own[P];
#pragma GCC unroll 2
                    for (int p = 0; p < P; ++p) {
                        if constexpr (FETCHES) fetch_at<F>(next[p], g * F::GROUP / 4 + at);
                        own[p] = codes_at<F>(codes[p] + at / 8 * UNIT<F>, at % 8);
                    }
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) {
                        const Four four = four_at(x + m * X + 4 * at);
#pragma GCC unroll 2
                        for (int p = 0; p < P; ++p) dots[m][p].add(own[p], four, step);
                    }
                }
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                    for (int p = 0; p < P; ++p) {
                        const v16 scale = scales[p][g + part], dot = dots[m][p].biased();
                        const v16 value = scaled(dot, scale);
                        values[m][p] = part ? values[m][p] + value : value;
                    }
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p) {
                    totals[m][p] = multiply_add(totals[m][p], groups[m].scale, values[m][p]);
                    if constexpr (F::HAS_MIN) totals[m][p] = multiply_add(totals[m][p], groups[m].sum, mins[p][g]);
                }
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) codes[p] += X / 32 * UNIT<F>;
            x += tile_rows * X, groups += tile_rows;
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) store(sums + m * BLOCK + p * PANEL, totals[m][p]);
}

// f(N), f(N - 1), ... f(1): the one whose number is `count`, which is known to the compiler there.
template <int N, typename Function>
void with_count(int64_t count, const Function& f) {
    if (count == N)
        f(std::integral_constant<int, N>());
    else if constexpr (N > 1)
        with_count<N - 1>(count, f);
}

// A tile's rows by P panels, a few rows a call. The first two calls fetch: a single one would wait for memory where a
// block has 8 bits, and more than two take more time for their instructions.
template <typename F, int P>
void multiply_panels(const BlockPanel* panels, const RowTile& tile, int64_t M, float* sums, const Fetch* fetch) {
    const int64_t num_calls = (M + DOT_ROWS - 1) / DOT_ROWS,
                  num_fetching = fetch->at ? std::min<int64_t>(num_calls, 2) : 0;
    int64_t m = 0;
    for (int64_t call = 0; call < num_calls; ++call) {
        const auto rows = [&](auto fetches, auto count) {
            Fetch own[P];
            for (int p = 0; fetches && p < P; ++p) own[p] = fetch[p].part(call, num_fetching);
            multiply_rows<F, count, P, fetches>(panels, tile.values + m * INPUT_GROUP<F>, tile.groups + m,
                                                tile.num_rows, sums + m * BLOCK, own);
            m += count;
        };
        const int64_t left = num_calls - call, count = (M - m + left - 1) / left;
        if (call < num_fetching)
            with_count<DOT_ROWS>(count, [&](auto count) { rows(std::true_type(), count); });
        else
            with_count<DOT_ROWS>(count, [&](auto count) { rows(std::false_type(), count); });
    }
}

template <typename F>
void multiply(const BlockPanel* panels, int64_t num_panels, const RowTile& tile, int64_t M, float* sums,
              const Fetch* fetch) {
    int64_t p = 0;
    for (; p + DOT_PANELS <= num_panels; p += DOT_PANELS)
        multiply_panels<F, DOT_PANELS>(panels + p, tile, M, sums + p * PANEL, fetch + p);
    if (p < num_panels) multiply_panels<F, 1>(panels + p, tile, M, sums + p * PANEL, fetch + p);
}

// A format as products of many rows take it: a block is one group of inputs, with scales in fp32 and, for tiles, a byte
// a code.
template <typename F>
struct Plain {
    static constexpr int VALUES = INPUT_GROUP<F>, BITS = HAS_TILES ? 8 : F::BITS, GROUP = F::GROUP, OFFSET = F::OFFSET;
    static constexpr bool HAS_MIN = F::HAS_MIN;
    static constexpr int PARTS = VALUES / GROUP, HEAD = (PARTS + HAS_MIN) * 4, BYTES = HEAD + VALUES * BITS / 8;

    __attribute__((always_inline)) static void scales(const uint8_t* heads, v16* scales, v16* mins) {
        const float* const from = reinterpret_cast<const float*>(heads);
        for (int part = 0; part < PARTS; ++part) scales[part] = load(from + part * PANEL);
        if constexpr (HAS_MIN) *mins = load(from + PARTS * PANEL);
    }
};

template <typename F>
BlockPanel unpack(const BlockPanel& panel, const Codec& plain, uint8_t* out) {
    constexpr int GROUPS = F::VALUES / Plain<F>::VALUES;
    const uint8_t *heads = panel.heads, *codes = panel.codes;
    float* heads_out = reinterpret_cast<float*>(out);
    uint8_t* codes_out = out + plain.heads_size(panel.num_blocks * GROUPS);
    const BlockPanel unpacked{&plain, out, HAS_TILES ? codes_out : codes, panel.num_blocks * GROUPS};
    for (int64_t b = 0; b < panel.num_blocks; ++b, heads += PANEL * F::HEAD) {
        v16 scales[NUM_GROUPS<F>], mins[NUM_GROUPS<F>];
        F::scales(heads, scales, mins);
        for (int g = 0; g < NUM_GROUPS<F>; ++g, heads_out += PANEL) {
            store(heads_out, scales[g]);
            if constexpr (F::HAS_MIN) store(heads_out += PANEL, mins[g]);
        }
        for (int unit = 0; HAS_TILES && unit < F::VALUES / 32; ++unit, codes += UNIT<F>, codes_out += 512)
#pragma GCC unroll 8
            for (int step = 0; step < 8; ++step) {
                const u16x own = codes_at<F>(codes, step);
                std::memcpy(codes_out + 64 * step, &own, sizeof own);
            }
    }
    return unpacked;
}

#if defined(__AMX_INT8__)

// A tile's rows by a panel of a plain format. A group's sums are taken from the tiles while the next one's are
// computed.
template <typename F>
void multiply_tile(const BlockPanel& panel, const RowTile& tile, float* sums, Fetch fetch) {
    constexpr int X = F::VALUES, PARTS = F::PARTS;
    alignas(64) int32_t stage[2][PARTS][TILE_ROWS * PANEL];
    const uint8_t *heads = panel.heads, *codes = panel.codes;
    const int8_t* x = tile.values;
    const RowGroup* groups = tile.groups;
    v16 totals[TILE_ROWS] = {};
    asm volatile("" ::: "memory");  // the compiler does not know that tile loads read what was stored before
    const auto compute = [&](int64_t b) {
        const int8_t* const rows = x + b * tile.num_rows * X;
        const uint8_t* const columns = codes + b * X * PANEL;
        int32_t* const to = stage[b % 2][0];
        _tile_zero(0);
        if constexpr (PARTS == 1) {
            for (int at = 0; at < X; at += 32) {
                _tile_loadd(4, rows + at, X);
                _tile_loadd(6, columns + at * PANEL, 64);
                _tile_dpbsud(0, 4, 6);
            }
        } else {
            _tile_loadd(5, rows, X);
            _tile_loadd(7, columns, 64);
            _tile_dpbsud(0, 5, 7);
            _tile_zero(1);
            _tile_loadd(5, rows + 16, X);
            _tile_loadd(7, columns + 16 * PANEL, 64);
            _tile_dpbsud(1, 5, 7);
            _tile_stored(1, to + TILE_ROWS * PANEL, 64);
        }
        _tile_stored(0, to, 64);
    };
    compute(0);
    for (int64_t b = 0; b < panel.num_blocks; ++b) {
        if (b + 1 < panel.num_blocks) compute(b + 1);
        fetch.next(NUM_LINES<F>);
        v16 scales[PARTS], mins[1];
        F::scales(heads, scales, mins);
#pragma GCC unroll 16
        for (int m = 0; m < TILE_ROWS; ++m) {
            v16 value{};
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; ++part) {
                i16x sum;
                std::memcpy(&sum, stage[b % 2][part] + m * PANEL, sizeof sum);
                const v16 own = scaled((v16)(sum + (F::OFFSET ? groups[m].starts[part] : BIAS_BITS)), scales[part]);
                value = part ? value + own : own;
            }
            totals[m] = multiply_add(totals[m], groups[m].scale, value);
            if constexpr (F::HAS_MIN) totals[m] = multiply_add(totals[m], groups[m].sum, mins[0]);
        }
        heads += PANEL * F::HEAD, groups += tile.num_rows;
    }
#pragma GCC unroll 16
    for (int m = 0; m < TILE_ROWS; ++m) store(sums + m * BLOCK, totals[m]);
}

#endif

template <typename F>
void multiply_plain(const BlockPanel* panels, int64_t num_panels, const RowTile& tile, int64_t M, float* sums,
                    const Fetch* fetch) {
#if defined(__AMX_INT8__)
    if (M >= MANY_ROWS) {
        for (int64_t p = 0; p < num_panels; ++p) multiply_tile<F>(panels[p], tile, sums + p * PANEL, fetch[p]);
        return;
    }
#endif
    multiply<F>(panels, num_panels, tile, M, sums, fetch);
}

}  // namespace native
