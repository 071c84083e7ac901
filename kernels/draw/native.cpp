// draw, three passes over a row. Contract: kernels/draw/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace {

using namespace native;

constexpr int64_t PART = 256;  // probabilities summed in fp32 before they go into a sum in fp64

// e^((x - top) * inverse) of the values from `at` on, 0 beyond the end.
template <typename T>
inline v16 weight(const T* row, int64_t at, int64_t size, float top, float inverse) {
    if (size - at >= LANES) return exp((load(row + at) - top) * inverse);
    float rest[LANES];
    for (int64_t i = 0; i < LANES; ++i)
        rest[i] = at + i < size ? (load1(row + at + i) - top) * inverse : -std::numeric_limits<float>::infinity();
    return exp(load(rest));
}

template <typename T>
int64_t draw(const T* row, int64_t size, float temperature, double uniform) {
    const int64_t whole = size / LANES * LANES;
    v16 tops = splat(-std::numeric_limits<float>::infinity()), check{};
    for (int64_t i = 0; i < whole; i += LANES) {
        const v16 x = load(row + i);
        tops = max(tops, x);
        check += x * 0.0f;  // NaN if x is not finite
    }
    float top = max(tops), bad = sum(check);
    for (int64_t i = whole; i < size; ++i) {
        top = std::max(top, load1(row + i));
        bad += load1(row + i) * 0.0f;
    }
    if (bad != 0) return -1;
    if (temperature == 0) {
        int64_t i = 0;
        while (load1(row + i) != top) ++i;
        return i;
    }
    static thread_local std::vector<double> ends;
    ends.clear();
    const float inverse = 1.0f / temperature;
    double total = 0;
    for (int64_t first = 0; first < size; first += PART) {
        v16 part{};
        for (int64_t i = first; i < std::min(first + PART, size); i += LANES)
            part += weight(row, i, size, top, inverse);
        total += sum(part);
        ends.push_back(total);
    }
    const double target = std::min(uniform * total, total * (1 - 1e-15));  // rounding may bring it to the total
    const int64_t part = std::upper_bound(ends.begin(), ends.end(), target) - ends.begin();
    double running = part ? ends[part - 1] : 0;
    int64_t last =
        part * PART;  // the last one with any weight, should rounding leave the target beyond this part's sum
    for (int64_t i = part * PART; i < std::min(part * PART + PART, size); i += LANES) {
        const v16 weights = weight(row, i, size, top, inverse);
        for (int64_t n = 0; n < std::min(LANES, size - i); ++n) {
            running += weights[n];
            if (weights[n] > 0) last = i + n;
            if (running > target) return i + n;
        }
    }
    return last;
}

}  // namespace

void native::bind_draw(nb::module_& m) {
    m.def(
        "draw",
        [](Tensor logits_RV, const std::vector<float>& temperatures, const std::vector<double>& uniforms) {
            std::vector<int64_t> tokens(temperatures.size());
            const int64_t num_rows = tokens.size();
            check_value(uniforms.size() == tokens.size(), "each temperature must have its uniform");
            with_dtype(logits_RV, "logits_RV", [&](auto number) {
                const auto logits = logits_RV.view<const decltype(number)>("logits_RV", {num_rows, ANY});
                check_value(logits.shape[1] > 0, "there must be at least one token to draw");
                launch_uncaptured("draw", [&] {
                    parallel(num_rows, [&](int64_t row) {
                        tokens[row] = draw(logits.row(row), logits.shape[1], temperatures[row], uniforms[row]);
                    });
                });
            });
            return tokens;
        },
        "logits_RV"_a, "temperatures"_a, "uniforms"_a);
}
