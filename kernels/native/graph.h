// Graphs of kernels' calls: captured once, then replayed by one call for as many rows as wanted.
//
// A step makes the same calls as the one before, for more or fewer tokens, and between two calls Python and torch cost
// as much as the smaller kernels. So a call becomes a node: an operation with its views bound. Tensors stay where they
// are and strides do not change, so a capture for the most rows serves every smaller number (kernels.native.capture).
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace native {

using Node = std::function<void(int64_t rows)>;

class Graph {
 public:
    // Nodes have num_tokens rows, and num_rows behind the first take_rows; `memory` holds what they write.
    Graph(int64_t num_tokens, std::optional<int64_t> num_rows, nanobind::object memory);

    static thread_local Graph* capturing;  // what this thread's calls go to; null: they are made at once

    void begin();
    void end();
    // A node of so many rows, or NotCapturableError.
    void add(int64_t rows, Node node);
    // The nodes from here on have num_rows rows.
    void switch_rows();
    // Hold a tensor as long as the graph lives, unless the graph's memory does.
    void keep(nanobind::handle tensor, const void* data);
    // Run all nodes, for no more rows than were captured.
    void replay(int64_t num_tokens, std::optional<int64_t> num_rows) const;
    size_t size() const { return nodes.size(); }

 private:
    void run(size_t begin, size_t end, int64_t rows) const;

    int64_t num_tokens;
    std::optional<int64_t> num_rows;
    std::optional<size_t> switch_at;  // the first node with num_rows rows
    std::vector<Node> nodes;
    nanobind::object memory;
    const char* memory_begin;
    int64_t memory_size;
    std::vector<nanobind::object> kept;
};

// Run an operation for so many rows, or add it to the graph that this thread captures.
template <typename Op>
void launch(int64_t rows, Op op) {
    if (Graph* graph = Graph::capturing) return graph->add(rows, std::move(op));
    const nanobind::gil_scoped_release others_run;
    op(rows);
}

[[noreturn]] void refuse_capture(const char* what);  // NotCapturableError

// Run an operation that no graph can hold.
template <typename Op>
void launch_uncaptured(const char* name, const Op& op) {
    if (Graph::capturing) refuse_capture(name);
    const nanobind::gil_scoped_release others_run;
    op();
}

}  // namespace native
