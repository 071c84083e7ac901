// Capture and replay (graph.h).
#include "binding.h"

#include <string>

namespace native {

thread_local Graph* Graph::capturing = nullptr;

void refuse_capture(const char* what) {
    const nb::object error = nb::module_::import_("kernels.native.capture").attr("NotCapturableError");
    PyErr_SetString(error.ptr(), (std::string(what) + " cannot be captured").c_str());
    throw nb::python_error();
}

Graph::Graph(int64_t tokens, std::optional<int64_t> rows, nb::object held)
    : num_tokens(tokens), num_rows(rows), memory(std::move(held)) {
    const View<uint8_t, 1> bytes = Tensor{memory}.packed<uint8_t>("memory", {ANY});
    memory_begin = reinterpret_cast<const char*>(bytes.data);
    memory_size = bytes.shape[0];
}

void Graph::begin() {
    if (capturing) refuse_capture("a graph inside another");
    check_value(nodes.empty(), "a graph is captured once");
    capturing = this;
}

void Graph::end() { capturing = nullptr; }

void Graph::add(int64_t rows, Node node) {
    const int64_t expected = switch_at ? *num_rows : num_tokens;
    if (rows != expected)
        refuse_capture(
            ("an operation on " + std::to_string(rows) + " rows, where there are " + std::to_string(expected) + ",")
                .c_str());
    nodes.push_back(std::move(node));
}

void Graph::switch_rows() {
    if (!num_rows) refuse_capture("take_rows in a graph without num_rows");
    if (!switch_at) switch_at = nodes.size();
}

void Graph::keep(nb::handle tensor, const void* data) {
    const char* const first = static_cast<const char*>(data);
    if (first < memory_begin || first >= memory_begin + memory_size) kept.push_back(nb::borrow(tensor));
}

void Graph::replay(int64_t tokens, std::optional<int64_t> rows) const {
    check_value(this != capturing, "a graph is replayed after its capture");
    check_value(0 < tokens && tokens <= num_tokens, "num_tokens must lie in 1 to the number captured");
    check_value(bool(rows) == bool(switch_at), "num_rows is given where take_rows was captured, and nowhere else");
    check_value(!rows || (0 <= *rows && *rows <= *num_rows), "num_rows must lie in 0 to the number captured");
    const nb::gil_scoped_release others_run;
    const size_t last = switch_at ? *switch_at : nodes.size();
    run(0, last, tokens);
    if (rows && *rows) run(last, nodes.size(), *rows);
}

void Graph::run(size_t begin, size_t end, int64_t rows) const {
    for (size_t i = begin; i < end; ++i) nodes[i](rows);
}

void bind_graph(nb::module_& m) {
    nb::class_<Graph>(m, "Graph")
        .def(nb::init<int64_t, std::optional<int64_t>, nb::object>(), "num_tokens"_a, "num_rows"_a.none(), "memory"_a)
        .def("begin", &Graph::begin)
        .def("end", &Graph::end)
        .def("replay", &Graph::replay, "num_tokens"_a, "num_rows"_a = nb::none())
        .def("__len__", &Graph::size);
}

}  // namespace native
