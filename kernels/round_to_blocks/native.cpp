// round_to_blocks on a CPU. Contract: kernels/round_to_blocks/__init__.py.
//
// 16 rows are rounded at a time, one in each lane, so that sums over a block need no sums over lanes.
#include "../native/binding.h"
#include "../native/pool.h"

#include <atomic>
#include <cmath>

namespace {

using namespace native;

constexpr int64_t SIZE = 32, HALF = SIZE / 2;  // values in a block

inline v16 round_all(v16 x) { return x + 12582912.0f - 12582912.0f; }  // 1.5 * 2^23: halves to even
inline v16 clamp(v16 x, float low, float high) { return min(max(x, splat(low)), splat(high)); }
inline v16 inverse(v16 x) { return x == 0.0f ? v16{} : 1.0f / x; }

// A block of 16 rows: value j of all rows in x[j]; beyond `size` zeros.
template <typename T>
void load_block(const T* const (&rows)[LANES], int64_t first, int64_t size, v16 (&x)[SIZE]) {
    alignas(64) float values[SIZE][LANES] = {};
    for (int64_t lane = 0; lane < LANES; ++lane)
        for (int64_t j = 0; j < size; ++j) values[j][lane] = load1(rows[lane] + first + j);
    for (int64_t j = 0; j < SIZE; ++j) x[j] = load(values[j]);
}

v16 largest_of(const v16 (&x)[SIZE]) {
    v16 largest{}, size{};
    for (const v16& value : x) {
        const v16 own = max(value, -value);
        largest = own > size ? value : largest;
        size = own > size ? own : size;
    }
    return largest;
}

// The scales whose 4-bit codes lose least, errors weighed.
v16 search(const v16 (&x)[SIZE], const float (&weights)[SIZE]) {
    const v16 unit = inverse(largest_of(x));
    v16 best{}, scale{};
    for (int step = -9; step <= 9; ++step) {
        const v16 inverse_scale = (-8.0f + 0.1f * static_cast<float>(step)) * unit;
        v16 fit{}, power{};
        for (int64_t j = 0; j < SIZE; ++j) {
            const v16 q = clamp(round_all(x[j] * inverse_scale), -8.0f, 7.0f), own = weights[j] * q;
            fit += own * x[j];
            power += own * q;
        }
        const v16 ratio = power > 0.0f ? fit / power : v16{}, gain = fit * ratio;
        scale = gain > best ? ratio : scale;
        best = gain > best ? gain : best;
    }
    return scale;
}

// Scales as fp16, which is how they are stored, and as what that is worth; false if one is not finite.
bool to_fp16(v16& scale, uint16_t (&halves)[LANES]) {
    bool finite = true;
    for (int64_t lane = 0; lane < LANES; ++lane) {
        const __m128i half = _mm_cvtps_ph(_mm_set_ss(scale[lane]), _MM_FROUND_TO_NEAREST_INT);
        halves[lane] = static_cast<uint16_t>(_mm_extract_epi16(half, 0));
        scale[lane] = _mm_cvtss_f32(_mm_cvtph_ps(half));
        finite &= std::isfinite(scale[lane]);
    }
    return finite;
}

struct Q4_0 {
    static constexpr int64_t BYTES = 2 + HALF;
    static constexpr float LOW = -8.0f, HIGH = 7.0f;
    static v16 scale(const v16 (&x)[SIZE], const float (&weights)[SIZE]) { return search(x, weights); }
    static void put(const int8_t (&q)[SIZE][LANES], int64_t lane, uint8_t* codes) {
        for (int64_t j = 0; j < HALF; ++j)
            codes[j] = static_cast<uint8_t>((q[j][lane] + 8) | (q[j + HALF][lane] + 8) << 4);
    }
};

struct Q8_0 {
    static constexpr int64_t BYTES = 2 + SIZE;
    static constexpr float LOW = -127.0f, HIGH = 127.0f;
    static v16 scale(const v16 (&x)[SIZE], const float (&)[SIZE]) {
        const v16 largest = largest_of(x);
        return max(largest, -largest) * (1.0f / 127.0f);
    }
    static void put(const int8_t (&q)[SIZE][LANES], int64_t lane, uint8_t* codes) {
        for (int64_t j = 0; j < SIZE; ++j) codes[j] = static_cast<uint8_t>(q[j][lane]);
    }
};

// Up to 16 rows; false if a scale is not finite.
template <typename Format, typename T>
bool round_rows(const View<const T, 2>& weight, const float* importance, int64_t first_row,
                const View<uint8_t, 2>& out) {
    const int64_t count = weight.shape[0] - first_row < LANES ? weight.shape[0] - first_row : LANES;
    const int64_t in_size = weight.shape[1];
    const T* rows[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) rows[lane] = weight.row(first_row + (lane < count ? lane : 0));
    bool finite = true;
    for (int64_t first = 0, block = 0; first < in_size; first += SIZE, ++block) {
        const int64_t size = in_size - first < SIZE ? in_size - first : SIZE;
        v16 x[SIZE];
        load_block(rows, first, size, x);
        float weights[SIZE] = {};
        for (int64_t j = 0; j < size; ++j) weights[j] = importance ? importance[first + j] : 1.0f;
        v16 scale = Format::scale(x, weights);
        for (const v16& value : x) scale += value * 0.0f;  // NaN where a value is not finite
        uint16_t halves[LANES];
        finite &= to_fp16(scale, halves);
        const v16 inverse_scale = inverse(scale);
        int8_t q[SIZE][LANES];
        for (int64_t j = 0; j < SIZE; ++j) store(q[j], clamp(x[j] * inverse_scale, Format::LOW, Format::HIGH));
        for (int64_t lane = 0; lane < count; ++lane) {
            uint8_t* const made = out.row(first_row + lane) + block * Format::BYTES;
            std::memcpy(made, &halves[lane], sizeof halves[lane]);
            Format::put(q, lane, made + 2);
        }
    }
    return finite;
}

template <typename Format>
Tensor round_to_blocks(const Tensor& weight_OI, const std::optional<Tensor>& importance_I) {
    return with_dtype(weight_OI, "weight_OI", [&](auto number) {
        const auto weight = weight_OI.view<const decltype(number)>("weight_OI", {ANY, ANY});
        const float* const importance =
            importance_I ? importance_I->packed<const float>("importance_I", {weight.shape[1]}).data : nullptr;
        const auto blocks =
            weight_OI.make<uint8_t>({weight.shape[0], (weight.shape[1] + SIZE - 1) / SIZE * Format::BYTES});
        std::atomic<bool> finite{true};
        parallel((weight.shape[0] + LANES - 1) / LANES, [&](int64_t group) {
            if (!round_rows<Format>(weight, importance, group * LANES, blocks.view)) finite = false;
        });
        check_value(finite, "a scale is beyond fp16 or not a number");
        return blocks.tensor;
    });
}

}  // namespace

void native::bind_round_to_blocks(nb::module_& m) {
    m.def(
        "round_to_blocks",
        [](Tensor weight_OI, bool four_bits, std::optional<Tensor> importance_I) {
            return four_bits ? round_to_blocks<Q4_0>(weight_OI, importance_I)
                             : round_to_blocks<Q8_0>(weight_OI, importance_I);
        },
        "weight_OI"_a, "four_bits"_a, "importance_I"_a = nb::none());
}
