// The memory of memory.h.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace native {
namespace {

constexpr size_t SLAB = 64 << 20;  // bytes taken from the system at once; those that are never written cost nothing
constexpr size_t LINE = 64;

// A piece of memory that weights are cut from, one after another; the last weight that goes takes the slab along.
struct Slab {
    explicit Slab(size_t bytes) : size(bytes) {
        void* const mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        madvise(mapped, size, MADV_HUGEPAGE);  // fails on a system without large pages, which does no harm
        first = static_cast<char*>(mapped);
    }
    ~Slab() { munmap(first, size); }
    Slab(const Slab&) = delete;

    char* first;
    size_t size, used = 0;
};

std::mutex gate;
std::shared_ptr<Slab> slab;

}  // namespace

std::shared_ptr<void> weight_memory(size_t bytes) {
    const std::lock_guard alone(gate);
    if (!slab || slab->used + bytes > slab->size) slab = std::make_shared<Slab>(std::max(SLAB, bytes));
    void* const memory = slab->first + slab->used;
    slab->used += (bytes + LINE - 1) / LINE * LINE;
    return {slab, memory};
}

}  // namespace native
