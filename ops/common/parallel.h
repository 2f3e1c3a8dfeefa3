// Threads and scratch memory of CPU kernels.
#pragma once

#include "torch_errors.h"  // before the headers that it changes

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <new>
#include <vector>
#ifdef DCNZOO_STD_THREADS
#include <thread>
#endif

#include "integers.h"

namespace dcnzoo {

#ifdef DCNZOO_STD_THREADS

// For `make sanitize-threads`: the sanitizer does not see the synchronisation of torch's thread pool.
inline int64_t num_threads() { return DCNZOO_STD_THREADS; }

template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  const int64_t pieces = std::min(num_threads(), ceil_div(count, grain));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < pieces; ++i)
    threads.emplace_back([&, i] { function(count * i / pieces, count * (i + 1) / pieces); });
  for (std::thread& thread : threads) thread.join();
}

#else

// torch's thread pool, so that torch.set_num_threads applies.
inline int64_t num_threads() { return torch::stable::get_num_threads(); }

template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, function);
}

#endif

template <typename Function>
void parallel_each(int64_t count, const Function& function) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i);
  });
}

template <typename T>
void zero(T* data, int64_t size) {
  parallel_for(size, 1 << 16, [&](int64_t begin, int64_t end) { std::fill(data + begin, data + end, T(0)); });
}

// Dynamic scheduling: if another program occupies a core, the other threads take over its tasks.
// The result of a task must not depend on the thread that runs it.
//
// For tools/benchmark/scaling.py: if the environment variable DCNZOO_TASK_LOG names a file, each queue appends a line
// to it: `streamed`, the bytes of weights, columns and gradients that the largest task reads, and the CPU time of each
// task in microseconds (0 without a timer).
class TaskQueue {
 public:
  TaskQueue(int64_t tasks, int64_t streamed)
      : tasks_(tasks), streamed_(streamed), times_(log() ? tasks : 0) {}
  ~TaskQueue() {
    if (times_.empty()) return;
    std::fprintf(log(), "%lld ", static_cast<long long>(streamed_));
    for (const double time : times_) std::fprintf(log(), "%.1f ", time);
    std::fputc('\n', log());
    std::fflush(log());
  }

  bool take(int64_t& task) { return (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_; }

  // Fewer tasks than threads are left.
  bool scarce() const { return next_.load(std::memory_order_relaxed) + num_threads() > tasks_; }

  // Calls worker() once per thread; a worker takes tasks until none are left.
  template <typename Worker>
  void run(const Worker& worker) {
    const int64_t threads = std::min(tasks_, num_threads());
    parallel_for(threads, 1, [&](int64_t, int64_t) { worker(); });
  }

  // Measures a task if there is a log.
  class Timer {
   public:
    Timer(TaskQueue& queue, int64_t task) : time_(queue.times_.empty() ? nullptr : &queue.times_[task]) {
      if (time_) *time_ = -now();
    }
    ~Timer() {
      if (time_) *time_ += now();
    }

   private:
    static double now() {
      timespec time;
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
      return double(time.tv_sec) * 1e6 + double(time.tv_nsec) * 1e-3;
    }
    double* const time_;
  };

 private:
  static std::FILE* log() {
    static const char* const path = std::getenv("DCNZOO_TASK_LOG");
    static std::FILE* const file = path ? std::fopen(path, "a") : nullptr;
    return file;
  }
  const int64_t tasks_, streamed_;
  std::atomic<int64_t> next_{0};
  std::vector<double> times_;
};

template <typename Run>
struct Tasks {
  int64_t count, streamed;  // streamed: see TaskQueue
  Run run;
};
template <typename Run>
Tasks(int64_t, int64_t, Run) -> Tasks<Run>;

// Runs all tasks, of all kinds, in parallel; they start in this order.
template <typename... Run>
void run_tasks(const Tasks<Run>&... kinds) {
  TaskQueue queue((kinds.count + ...), std::max({int64_t(0), kinds.streamed...}));
  queue.run([&] {
    for (int64_t task; queue.take(task);) {
      const TaskQueue::Timer timer(queue, task);
      (void)((task < kinds.count ? (kinds.run(task), true) : (task -= kinds.count, false)) || ...);
    }
  });
}

// Uninitialised memory, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    if (size_ == 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, round_up(size_ * sizeof(T), 64)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { std::free(data_); }
  T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Memory that a thread reuses from call to call: every new allocation of this size would be mapped and unmapped by the
// system.
template <typename T>
T* thread_scratch(int64_t size) {
  static thread_local Buffer<T> scratch;
  if (scratch.size() < size) scratch = Buffer<T>(size);
  return scratch.data();
}

}  // namespace dcnzoo
