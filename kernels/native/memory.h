// Memory for packed weights, in large pages where the system grants them.
//
// A step reads every weight once, and with pages of 4 KiB finding them takes a tenth of that time or more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace native {

// So many bytes of 0, from a cache line's beginning on.
std::shared_ptr<void> weight_memory(size_t bytes);

template <typename T>
std::shared_ptr<T> weights(int64_t count) {
    return std::static_pointer_cast<T>(weight_memory(size_t(count) * sizeof(T)));
}

}  // namespace native
