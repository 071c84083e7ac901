// The threads of pool.h.
#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace native {
namespace {

constexpr auto PATIENCE = std::chrono::microseconds(200);  // that a worker watches for the next job

// One look at a value that another thread will change, giving way to others from time to time.
struct Watch {
    int looks = 0;
    bool next() {  // whether some time has passed
        _mm_pause();
        if (++looks % 64) return false;
        sched_yield();
        return true;
    }
};

class Pool {
 public:
    explicit Pool(int num_threads) {
        try {
            for (int i = 1; i < num_threads; ++i) workers.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
        }  // the system grants no more threads: those that there are do
    }

    ~Pool() {
        stopping = true;
        start(0, nullptr, nullptr);
        for (std::thread& worker : workers) worker.join();
    }

    int size() const { return int(workers.size()) + 1; }

    void run(int64_t count, void (*task)(void*, int64_t), void* context) {
        const uint32_t number = start(count, task, context);
        help(number);
        for (Watch watch; done.load(std::memory_order_acquire) < count;) watch.next();
    }

 private:
    uint32_t start(int64_t new_count, void (*new_task)(void*, int64_t), void* new_context) {
        done.store(0, std::memory_order_relaxed);
        task.store(new_task, std::memory_order_relaxed);
        context.store(new_context, std::memory_order_relaxed);
        count.store(new_count, std::memory_order_relaxed);
        const uint32_t number = job.load(std::memory_order_relaxed) + 1;
        claims.store(uint64_t(number) << 32 | uint32_t(new_count), std::memory_order_release);
        job.store(number);
        if (sleepers.load())
            syscall(SYS_futex, &job, FUTEX_WAKE_PRIVATE,
                    int32_t(std::min<int64_t>(new_count ? new_count - 1 : INT32_MAX, INT32_MAX)), nullptr, nullptr, 0);
        return number;
    }

    // Compute tasks of a job until none is left unclaimed. A claim names its job: one that comes too late fails, and
    // one that succeeds keeps the job, with all that it consists of, until its task is done.
    // A task that throws ends the process: the others' context would be gone.
    void help(uint32_t number) noexcept {
        for (;;) {
            uint64_t claim = claims.load(std::memory_order_acquire);
            do {
                if (uint32_t(claim >> 32) != number || uint32_t(claim) == 0) return;
            } while (!claims.compare_exchange_weak(claim, claim - 1, std::memory_order_acq_rel));
            const int64_t index = count.load(std::memory_order_relaxed) - int64_t(uint32_t(claim));
            task.load(std::memory_order_relaxed)(context.load(std::memory_order_relaxed), index);
            done.fetch_add(1, std::memory_order_release);
        }
    }

    void work() {
        uint32_t seen = 0;
        for (;;) {
            uint32_t number = job.load(std::memory_order_acquire);
            if (number == seen) {
                const auto since = std::chrono::steady_clock::now();
                for (Watch watch; (number = job.load(std::memory_order_acquire)) == seen;) {
                    if (!watch.next() || std::chrono::steady_clock::now() - since < PATIENCE) continue;
                    ++sleepers;
                    syscall(SYS_futex, &job, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
                    --sleepers;
                    break;
                }
                if (number == seen) continue;
            }
            seen = number;
            if (stopping) return;
            help(number);
        }
    }

    std::vector<std::thread> workers;
    std::atomic<bool> stopping{false};
    std::atomic<int> sleepers{0};
    std::atomic<void (*)(void*, int64_t)> task{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<int64_t> count{0};
    alignas(64) std::atomic<uint32_t> job{0};
    alignas(64) std::atomic<uint64_t> claims{0};  // the job's number, and how many of its tasks are not claimed
    alignas(64) std::atomic<int64_t> done{0};
};

std::atomic<int> wanted{1};
std::unique_ptr<Pool> pool;
std::mutex gate;  // held by who uses the pool

}  // namespace

int num_threads() { return wanted; }

void run_tasks(int64_t count, void (*task)(void*, int64_t), void* context) {
    if (count < 2 || wanted < 2) {
        for (int64_t i = 0; i < count; ++i) task(context, i);
        return;
    }
    const std::unique_lock alone(gate, std::try_to_lock);
    if (!alone) {  // another thread of the process is at it
        for (int64_t i = 0; i < count; ++i) task(context, i);
        return;
    }
    if (!pool) {
        pool = std::make_unique<Pool>(wanted);
        wanted = pool->size();
    }
    pool->run(count, task, context);
}

void set_threads(int64_t count) {
    const std::lock_guard alone(gate);
    if (wanted != count) pool.reset();
    wanted = count < 1 ? 1 : int(count);
}

}  // namespace native
