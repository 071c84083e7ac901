// Memory for packed weights, and kernels' working memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace native {

// So many bytes of 0, from a cache line's beginning on, in large pages where the system grants them: a step reads every
// weight once, and with pages of 4 KiB finding them takes a tenth of that time or more.
std::shared_ptr<void> weight_memory(size_t bytes);

template <typename T>
std::shared_ptr<T> weights(int64_t count) {
    return std::static_pointer_cast<T>(weight_memory(size_t(count) * sizeof(T)));
}

// Memory for a kernel's own use, kept from call to call: it grows, and begins at a cache line.
template <typename T>
class Scratch {
 public:
    ~Scratch() { std::free(memory); }

    // Room for so many values, which are not initialised.
    T* room(int64_t count) {
        if (count > size) {
            std::free(memory);
            size = count + count / 4;
            memory = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64));
            if (!memory) std::abort();
        }
        return memory;
    }

 private:
    T* memory = nullptr;
    int64_t size = 0;
};

// Memory of a thread for the task at hand.
inline char* scratch(size_t bytes) {
    static thread_local Scratch<char> memory;
    return memory.room(int64_t(bytes));
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace native
