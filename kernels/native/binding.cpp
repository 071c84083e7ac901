// Reading torch tensors (binding.h).
#include "binding.h"

#include <string>

namespace native {
namespace {

constexpr const char* DTYPES[] = {"bfloat16", "float32", "int8", "uint8", "int32", "int64"};  // as Element has them

// What is looked up in torch, once; nobody frees it.
struct Torch {
    PyObject *tensor, *dtypes[std::size(DTYPES)];
    PyObject *dtype, *is_cpu, *requires_grad, *shape, *stride, *data_ptr, *new_empty;  // names
    PyObject* keywords;                                                                // of new_empty

    Torch() {
        const nb::module_ torch = nb::module_::import_("torch");
        tensor = nb::object(torch.attr("Tensor")).release().ptr();
        for (size_t i = 0; i < std::size(DTYPES); ++i) dtypes[i] = nb::object(torch.attr(DTYPES[i])).release().ptr();
        dtype = PyUnicode_InternFromString("dtype");
        is_cpu = PyUnicode_InternFromString("is_cpu");
        requires_grad = PyUnicode_InternFromString("requires_grad");
        shape = PyUnicode_InternFromString("shape");
        stride = PyUnicode_InternFromString("stride");
        data_ptr = PyUnicode_InternFromString("data_ptr");
        new_empty = PyUnicode_InternFromString("new_empty");
        keywords = PyTuple_Pack(1, dtype);
    }
};

const Torch& torch() {
    static const Torch found;
    return found;
}

nb::object checked(PyObject* result) {
    if (!result) throw nb::python_error();
    return nb::steal(result);
}

std::string text(nb::handle object) { return nb::str(object).c_str(); }

[[noreturn]] void refuse_type(const char* name, const std::string& wanted, const std::string& given) {
    throw nb::type_error((std::string(name) + " must be " + wanted + ", and is " + given).c_str());
}
[[noreturn]] void refuse_value(const char* name, const std::string& wanted, const std::string& given) {
    throw nb::value_error((std::string(name) + " must have " + wanted + ", and has " + given).c_str());
}

Element element_of(nb::handle dtype, const char* name) {
    for (size_t i = 0; i < std::size(DTYPES); ++i)
        if (dtype.ptr() == torch().dtypes[i]) return Element(i);
    refuse_type(name, "of a dtype that kernels know", "of " + text(dtype));
}

std::string shape_text(const int64_t* shape, int64_t num_dims) {
    std::string all = "[";
    for (int64_t i = 0; i < num_dims; ++i)
        all += (i ? ", " : "") + (shape[i] == ANY ? std::string("any") : std::to_string(shape[i]));
    return all + "]";
}

}  // namespace

Element Tensor::element(const char* name) const {
    if (!PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(torch().tensor)))
        refuse_type(name, "a torch.Tensor", text(object.type()));
    return element_of(checked(PyObject_GetAttr(object.ptr(), torch().dtype)), name);
}

Tensor Tensor::new_empty(Element dtype, const int64_t* shape, int64_t num_dims) const {
    const Torch& names = torch();
    const nb::object sizes = checked(PyTuple_New(num_dims));
    for (int64_t i = 0; i < num_dims; ++i) PyTuple_SET_ITEM(sizes.ptr(), i, PyLong_FromLongLong(shape[i]));
    PyObject* const arguments[] = {object.ptr(), sizes.ptr(), names.dtypes[int(dtype)]};
    return {checked(PyObject_VectorcallMethod(names.new_empty, arguments, 2, names.keywords))};
}

Element DType::element() const { return element_of(object, "dtype"); }

void* Tensor::read(const char* name, Element wanted, int64_t num_dims, const int64_t* expected, bool packed,
                   int64_t* shape, int64_t* stride) const {
    const Torch& names = torch();
    if (element(name) != wanted) {
        const nb::object dtype = checked(PyObject_GetAttr(object.ptr(), names.dtype));
        refuse_type(name, std::string("of torch.") + DTYPES[int(wanted)], "of " + text(dtype));
    }
    if (checked(PyObject_GetAttr(object.ptr(), names.is_cpu)).ptr() != Py_True)
        refuse_type(name, "on the CPU", "on " + text(object.attr("device")));
    if (checked(PyObject_GetAttr(object.ptr(), names.requires_grad)).ptr() != Py_False)
        refuse_type(name, "a tensor without gradient", "one that requires it");
    const nb::object sizes = checked(PyObject_GetAttr(object.ptr(), names.shape));
    const nb::object strides = checked(PyObject_CallMethodNoArgs(object.ptr(), names.stride));
    bool fits = PyTuple_GET_SIZE(sizes.ptr()) == num_dims;
    for (int64_t i = 0; fits && i < num_dims; ++i) {
        shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
        stride[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
        fits = expected[i] == ANY || expected[i] == shape[i];
    }
    if (!fits) refuse_value(name, "shape " + shape_text(expected, num_dims), text(sizes));
    int64_t size = 1;  // of the dimensions behind one, in values
    for (int64_t i = num_dims - 1; i >= 0 && (packed || i == num_dims - 1); size *= shape[i--])
        if (shape[i] > 1 && stride[i] != size)
            refuse_value(name, packed ? "contiguous values" : "a contiguous last dimension",
                         "strides " + text(strides));
    const nb::object address = checked(PyObject_CallMethodNoArgs(object.ptr(), names.data_ptr));
    void* const data = PyLong_AsVoidPtr(address.ptr());
    if (Graph* graph = Graph::capturing) graph->keep(object, data);
    return data;
}

nb::object KVCache::part(const char* name, int64_t i) const {
    if (!has_scales() || PyTuple_GET_SIZE(object.ptr()) < 2) refuse_type(name, "(values, scales)", text(object.type()));
    return nb::borrow(PyTuple_GET_ITEM(object.ptr(), i));
}

void check_value(bool is_valid, const char* message) {
    if (!is_valid) throw nb::value_error(message);
}

void check_indices(const int64_t* indices, int64_t num, int64_t count, const char* name) {
    for (int64_t i = 0; i < num; ++i)
        if (indices[i] < 0 || indices[i] >= count)
            throw nb::index_error((std::string(name) + " must lie in 0 to " + std::to_string(count - 1) + ", and has " +
                                   std::to_string(indices[i]))
                                      .c_str());
}

}  // namespace native
