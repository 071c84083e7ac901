// From Python to typed views: torch tensors are checked here, once, before anything is computed.
//
// A tensor is read through its Python attributes, which takes 0.5 us and needs none of torch's headers. (nanobind's
// ndarray goes through DLPack, which takes 2.2 us.) A wrong dtype or device raises TypeError; a wrong shape or stride,
// ValueError.
#pragma once

#include "common.h"
#include "graph.h"

#include "../store_kv/packed.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include <optional>
#include <type_traits>

namespace native {

namespace nb = nanobind;
using namespace nb::literals;

enum class Element { BFLOAT16, FLOAT32, INT8, UINT8, INT32, INT64 };

template <typename T>
constexpr Element element_of() {
    if constexpr (std::is_same_v<T, bf16>) return Element::BFLOAT16;
    if constexpr (std::is_same_v<T, float>) return Element::FLOAT32;
    if constexpr (std::is_same_v<T, int8_t>) return Element::INT8;
    if constexpr (std::is_same_v<T, uint8_t> || std::is_same_v<T, Packed>) return Element::UINT8;
    if constexpr (std::is_same_v<T, int32_t>) return Element::INT32;
    if constexpr (std::is_same_v<T, int64_t>) return Element::INT64;
}

constexpr int64_t ANY = -1;  // a size that a tensor is free to have

// A tensor's values; strides count values.
template <typename T, size_t N>
struct View {
    T* data;
    int64_t shape[N], stride[N];

    T* row(int64_t i) const { return data + i * stride[0]; }
    T* row(int64_t i, int64_t j) const { return row(i) + j * stride[1]; }
};

template <typename T, size_t N>
struct Made;

// A torch.Tensor that is not yet checked.
struct Tensor {
    nb::object object;

    // A CPU tensor of this dtype and shape, whose last dimension is contiguous.
    template <typename T, size_t N>
    View<T, N> view(const char* name, const int64_t (&shape)[N]) const {
        return read<T>(name, shape, false);
    }
    // The same, and contiguous as a whole.
    template <typename T, size_t N>
    View<T, N> packed(const char* name, const int64_t (&shape)[N]) const {
        return read<T>(name, shape, true);
    }
    Element element(const char* name) const;

    // A new tensor of this dtype and shape, not initialised: a result.
    template <typename T, size_t N>
    Made<T, N> make(const int64_t (&shape)[N]) const {
        const Tensor made = new_empty(element_of<T>(), shape, N);
        return {made, made.packed<T>("the result", shape)};
    }

 private:
    Tensor new_empty(Element dtype, const int64_t* shape, int64_t num_dims) const;

    template <typename T, size_t N>
    View<T, N> read(const char* name, const int64_t (&shape)[N], bool packed) const {
        View<T, N> view;
        view.data = static_cast<T*>(
            read(name, element_of<std::remove_const_t<T>>(), N, shape, packed, view.shape, view.stride));
        return view;
    }
    void* read(const char* name, Element wanted, int64_t num_dims, const int64_t* expected, bool packed, int64_t* shape,
               int64_t* stride) const;
};

template <typename T, size_t N>
struct Made {
    Tensor tensor;
    View<T, N> view;
};

// A torch.dtype.
struct DType {
    nb::object object;
    Element element() const;
};

// f(zero of the tensor's dtype), which must be bfloat16 or float32.
template <typename F>
auto with_element(Element element, const char* name, const F& f) {
    if (element == Element::BFLOAT16) return f(bf16{});
    if (element == Element::FLOAT32) return f(float{});
    throw nb::type_error((std::string(name) + " must be of torch.bfloat16 or torch.float32").c_str());
}
template <typename F>
auto with_dtype(const Tensor& tensor, const char* name, const F& f) {
    return with_element(tensor.element(name), name, f);
}

// A layer's cache as kernels.kv_cache has it: a tensor, or int8 values or packed rows with their scales.
template <typename C>
struct CacheView {
    View<C, 4> values;  // [blocks, key heads, slots, values or bytes]
    Scale<C>* scales;   // [blocks, key heads, slots, num_scales]; null where values are numbers
};
struct KVCache {
    nb::object object;
    bool has_scales() const { return PyTuple_Check(object.ptr()); }
    bool is_packed(const char* name) const {
        return has_scales() && Tensor{part(name, 0)}.element(name) == Element::UINT8;
    }

    template <typename C>
    CacheView<C> view(const char* name, const int64_t (&shape)[4], int64_t num_scales) const {
        typedef std::remove_const_t<C> Value;
        if constexpr (!std::is_same_v<Value, int8_t> && !std::is_same_v<Value, Packed>) {
            return {Tensor{object}.packed<C>(name, shape), nullptr};
        } else {
            const View<C, 4> values = Tensor{part(name, 0)}.packed<C>(name, shape);
            const int64_t* own = values.shape;
            return {values, Tensor{part(name, 1)}.packed<Scale<C>>(name, {own[0], own[1], own[2], num_scales}).data};
        }
    }

 private:
    nb::object part(const char* name, int64_t i) const;
};
// f(zero of a tensor's dtype, zero of what a cache for it holds).
template <typename F>
auto with_dtypes(const Tensor& tensor, const char* name, const KVCache& cache, const char* cache_name, const F& f) {
    return with_dtype(tensor, name, [&](auto number) {
        if (!cache.has_scales()) return f(number, number);
        return cache.is_packed(cache_name) ? f(number, Packed{}) : f(number, int8_t{});
    });
}

void check_value(bool is_valid, const char* message);  // else ValueError
// Indices that must lie in [0, count), or IndexError.
void check_indices(const int64_t* indices, int64_t num, int64_t count, const char* name);

// Every operation's binding, in kernels/<operation>/native.cpp.
void bind_graph(nb::module_&), bind_plan(nb::module_&), bind_block_linear(nb::module_&),
    bind_causal_attention(nb::module_&);
void bind_compression(nb::module_&), bind_draw(nb::module_&), bind_embedding(nb::module_&), bind_gelu(nb::module_&);
void bind_grouped_mlp(nb::module_&), bind_hadamard(nb::module_&), bind_head_linear(nb::module_&);
void bind_latent_attention(nb::module_&);
void bind_lightning_indexer(nb::module_&), bind_linear(nb::module_&), bind_modality_embedding(nb::module_&),
    bind_paged_attention(nb::module_&);
void bind_rms_norm(nb::module_&), bind_rotary(nb::module_&), bind_rotate_and_store(nb::module_&);
void bind_routing(nb::module_&), bind_silu_mul(nb::module_&), bind_store_latents(nb::module_&);
void bind_round_to_blocks(nb::module_&), bind_take_rows(nb::module_&);

}  // namespace native

namespace nanobind::detail {

// Each is handed over as it is, and checked where its name and shape are known.
#define CASTER(TYPE, NAME)                                                             \
    template <>                                                                        \
    struct type_caster<TYPE> {                                                         \
        NB_TYPE_CASTER(TYPE, const_name(NAME))                                         \
        bool from_python(handle src, uint8_t, cleanup_list*) noexcept {                \
            value.object = borrow(src);                                                \
            return true;                                                               \
        }                                                                              \
        static handle from_cpp(const TYPE& value, rv_policy, cleanup_list*) noexcept { \
            return value.object.inc_ref();                                             \
        }                                                                              \
    }
CASTER(native::Tensor, "torch.Tensor");
CASTER(native::DType, "torch.dtype");
CASTER(native::KVCache, "kernels.kv_cache.Cache");
#undef CASTER

}  // namespace nanobind::detail
