// rms_norm and add_rms_norm. Contract: kernels/rms_norm/__init__.py.
#include "../native/binding.h"
#include "../native/common.h"
#include "../native/pool.h"

#include <cmath>

namespace {

using namespace native;

// y = in * rsqrt(mean(in^2) + eps) * weight, where in is x, or the residual, or the residual after x has been added to
// it.
template <bool HasX, bool HasResidual, typename T>
inline void normalize(const T* x, float* residual, const T* weight, T* y, int64_t size, float eps) {
    constexpr int SUMS = 4;  // one would have to wait for itself
    v16 squares[SUMS] = {};
    const auto take = [&](int64_t i, const auto& load_16) {
        v16 value{};
        if constexpr (HasX) value = load_16(x, i);
        if constexpr (HasResidual) value += load_16(residual, i);
        return value;
    };
    const auto whole = [](const auto* row, int64_t i) { return load(row + i); };
    const auto rest = [size](const auto* row, int64_t i) { return load_from(row, i, size); };
    int64_t i = 0;
    for (; i + SUMS * LANES <= size; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; ++s) {
            const v16 value = take(i + s * LANES, whole);
            if constexpr (HasX && HasResidual) store(residual + i + s * LANES, value);
            squares[s] += value * value;
        }
    for (; i < size; i += LANES) {
        const v16 value = take(i, rest);
        if constexpr (HasX && HasResidual) store_to(residual, i, size, value);
        squares[0] += value * value;
    }
    const float scale =
        1.0f / std::sqrt(sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / float(size) + eps);
    const auto* const in = [&] {
        if constexpr (HasResidual)
            return residual;
        else
            return x;
    }();
    for (i = 0; i + LANES <= size; i += LANES) store(y + i, load(in + i) * scale * load(weight + i));
    if (i < size) store_to(y, i, size, load_from(in, i, size) * scale * load_from(weight, i, size));
}

// Rows of x or of the residual; one of them may be without data.
template <typename T>
void rms_norm(const View<const T, 2>& x, const View<float, 2>& residual, const T* weight, const View<T, 2>& y,
              int64_t num_rows, float eps) {
    const auto of_rows = [&](auto has_x, auto has_residual) {
        parallel_rows(num_rows, 8, [&](int64_t row) {
            normalize<decltype(has_x)::value, decltype(has_residual)::value>(x.row(row), residual.row(row), weight,
                                                                             y.row(row), y.shape[1], eps);
        });
    };
    if (x.data && residual.data)
        of_rows(std::true_type(), std::true_type());
    else if (x.data)
        of_rows(std::true_type(), std::false_type());
    else
        of_rows(std::false_type(), std::true_type());
}

}  // namespace

void native::bind_rms_norm(nb::module_& m) {
    m.def(
        "rms_norm",
        [](Tensor x_TH, Tensor weight_H, float eps, std::optional<Tensor> residual_TH) {
            return with_dtype(weight_H, "weight_H", [&](auto number) {
                using T = decltype(number);
                const auto weight = weight_H.packed<const T>("weight_H", {ANY});
                View<const T, 2> x{};
                View<float, 2> residual{};
                if (residual_TH || x_TH.element("x_TH") == element_of<T>())
                    x = x_TH.view<const T>("x_TH", {ANY, weight.shape[0]});
                else  // rows of the residual stream, which stay as they are
                    residual = x_TH.packed<float>("x_TH", {ANY, weight.shape[0]});
                if (residual_TH) residual = residual_TH->packed<float>("residual_TH", x.shape);
                const auto y = weight_H.make<T>({x.data ? x.shape[0] : residual.shape[0], weight.shape[0]});
                launch(y.view.shape[0],
                       [=, y = y.view](int64_t rows) { rms_norm(x, residual, weight.data, y, rows, eps); });
                return y.tensor;
            });
        },
        "x_TH"_a, "weight_H"_a, "eps"_a, "residual_TH"_a = nb::none());
}
