// modality_embedding on a CPU. Contract: kernels/modality_embedding/__init__.py.
#include "../native/binding.h"
#include "../native/pool.h"

void native::bind_modality_embedding(nb::module_& m) {
    m.def(
        "modality_embedding",
        [](Tensor weight_VH, Tensor scale_MH, Tensor shift_MH, Tensor token_ids_T,
           std::optional<Tensor> modality_ids_T) {
            return with_dtype(weight_VH, "weight_VH", [&](auto number) {
                using T = decltype(number);
                const auto weight = weight_VH.packed<const T>("weight_VH", {ANY, ANY});
                const auto scale = scale_MH.packed<const float>("scale_MH", {ANY, weight.shape[1]});
                const auto shift = shift_MH.packed<const float>("shift_MH", scale.shape);
                const auto token_ids = token_ids_T.packed<const int64_t>("token_ids_T", {ANY});
                const int64_t* modality_ids =
                    modality_ids_T ? modality_ids_T->packed<const int64_t>("modality_ids_T", token_ids.shape).data
                                   : nullptr;
                const auto x = weight_VH.make<float>({token_ids.shape[0], weight.shape[1]});
                launch(token_ids.shape[0], [=, x = x.view](int64_t rows) {
                    check_indices(token_ids.data, rows, weight.shape[0], "token_ids_T");
                    if (modality_ids) check_indices(modality_ids, rows, scale.shape[0], "modality_ids_T");
                    const int64_t size = weight.shape[1];
                    parallel_rows(rows, 8, [&](int64_t row) {
                        const T* own = weight.row(token_ids.data[row]);
                        const int64_t modality = modality_ids ? modality_ids[row] : 0;
                        for (int64_t i = 0; i < size; i += LANES)
                            store_to(x.row(row), i, size,
                                     load_from(own, i, size) * (1.0f + load_from(scale.row(modality), i, size)) +
                                         load_from(shift.row(modality), i, size));
                    });
                });
                return x.tensor;
            });
        },
        "weight_VH"_a, "scale_MH"_a, "shift_MH"_a, "token_ids_T"_a, "modality_ids_T"_a.none());
}
