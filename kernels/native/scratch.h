// Working memory for kernels.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace native {

// Memory of a thread that is kept between calls, 64 bytes aligned.
inline char* scratch(size_t bytes) {
    struct Buffer {
        char* data = nullptr;
        size_t size = 0;
        ~Buffer() { std::free(data); }
    };
    static thread_local Buffer buffer;
    if (bytes > buffer.size) {
        std::free(buffer.data);
        buffer.size = (bytes + 4095) / 4096 * 4096;
        buffer.data = static_cast<char*>(std::aligned_alloc(4096, buffer.size));
        if (!buffer.data) std::abort();
    }
    return buffer.data;
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace native
