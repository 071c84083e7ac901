// Sharing work out to threads, made for a machine that others use too.
//
// A job is so many tasks, which threads claim one by one; it is over when all tasks are, not when all threads have
// come. So a thread that has to wait for a core delays nobody, where OpenMP's barrier waits for each of them, in every
// job. Between jobs the workers watch for the next one, giving way to others, and go to sleep when none comes for a
// while.
#pragma once

#include <cstdint>

namespace native {

// How many threads there are, the caller's included.
int num_threads();

// The threads start when they are first needed.
void set_threads(int64_t count);

void run_tasks(int64_t count, void (*task)(void* context, int64_t index), void* context);

// task(index) for each index below count, in any order and at the same time. Tasks call no parallel themselves. Where
// two threads of a process come at the same time, the second one computes its tasks alone.
template <typename Task>
void parallel(int64_t count, const Task& task) {
    run_tasks(
        count, [](void* context, int64_t index) { (*static_cast<const Task*>(context))(index); },
        const_cast<Task*>(&task));
}

// task(first, last) for spans that together are 0 to size: a few for each thread, which begin at multiples of `unit`.
// Rows that share a cache line are one thread's, if `unit` of them fill lines.
template <typename Task>
void parallel_spans(int64_t size, int64_t unit, const Task& task) {
    const int64_t units = (size + unit - 1) / unit, most = 8 * num_threads(), count = units < most ? units : most;
    const auto begin = [=](int64_t i) { return i == count ? size : units * i / count * unit; };
    parallel(count, [&](int64_t i) { task(begin(i), begin(i + 1)); });
}

// task(row) for each row, in such spans.
template <typename Task>
void parallel_rows(int64_t num_rows, int64_t unit, const Task& task) {
    parallel_spans(num_rows, unit, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) task(row);
    });
}

}  // namespace native
