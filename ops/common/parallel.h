// Threads and scratch memory of CPU kernels.
#pragma once

#include "torch_errors.h"  // before the headers that it changes

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <new>
#include <thread>
#include <vector>

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

// Lets several threads do the same step of their tasks one after another, in the order of the tasks.
class Turns {
 public:
  // Waits until run() has returned for all smaller numbers, then calls step(). Does nothing if `failed` becomes true:
  // the turn of a task that threw never ends.
  template <typename Step>
  void run(int64_t number, const std::atomic<bool>& failed, const Step& step) {
    // Usually the wait is shorter than suspending the thread would take. A std::condition_variable would need a newer
    // libstdc++ than manylinux_2_28 has.
    for (int tries = 0; next_.load(std::memory_order_acquire) != number; ++tries) {
      if (failed.load(std::memory_order_relaxed)) return;
      if (tries < 1000)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    step();
    next_.store(number + 1, std::memory_order_release);
  }

 private:
  std::atomic<int64_t> next_{0};
};

// Dynamic scheduling: if another program occupies a core, the other threads take over its tasks.
// The result of a task must not depend on the thread that runs it.
//
// For tools/benchmark/scaling.py: if the environment variable DCNZOO_TASK_LOG names a file, each queue appends a line
// to it: `streamed`, the bytes of weights, columns and gradients that the largest task reads; `sequences`; and the CPU
// time of each task in microseconds (0 without a timer). If it has steps, this is the time before each, of the step, and
// after the last one, separated by commas.
class TaskQueue {
 public:
  // Task i belongs to sequence i % sequences. The tasks of a sequence have `steps` steps that they do in turn.
  TaskQueue(int64_t tasks, int64_t streamed, int64_t sequences = 1, int64_t steps = 0)
      : tasks_(tasks),
        streamed_(streamed),
        steps_(steps),
        next_(sequences),
        turns_(sequences * steps),
        times_(log() ? tasks : 0) {}
  ~TaskQueue() {
    if (times_.empty()) return;
    std::fprintf(log(), "%lld %zu", static_cast<long long>(streamed_), next_.size());
    for (const std::vector<double>& times : times_) {
      std::fprintf(log(), " %.1f", times.empty() ? 0 : times[0]);
      for (size_t i = 1; i < times.size(); ++i) std::fprintf(log(), ",%.1f", times[i]);
    }
    std::fputc('\n', log());
    std::fflush(log());
  }

  // Takes the next task of a sequence or, if none is left, of the one with the most left, which becomes the caller's.
  bool take(int64_t& task, int64_t& sequence) {
    const int64_t sequences = int64_t(next_.size());
    while (!failed_.load(std::memory_order_relaxed)) {
      task = next_[sequence].fetch_add(1, std::memory_order_relaxed) * sequences + sequence;
      if (task < tasks_) return true;
      sequence = std::min_element(next_.begin(), next_.end()) - next_.begin();
      if (next_[sequence].load(std::memory_order_relaxed) * sequences + sequence >= tasks_) return false;
    }
    return false;
  }

  // For a single sequence
  bool take(int64_t& task) {
    int64_t sequence = 0;
    return take(task, sequence);
  }

  // For a single sequence: fewer tasks than threads are left.
  bool scarce() const { return next_[0].load(std::memory_order_relaxed) + num_threads() > tasks_; }

  // Runs step `index` of a task, after the same step of the task before it in its sequence.
  template <typename Step>
  void run_in_turn(int64_t task, int64_t index, const Step& step) {
    std::vector<double>* const times = times_.empty() ? nullptr : &times_[task];
    if (times) times->back() += now();
    const int64_t sequences = int64_t(next_.size());
    turns_[task % sequences * steps_ + index].run(task / sequences, failed_, [&] {
      if (times) times->push_back(-now());
      step();
      if (times) times->back() += now(), times->push_back(-now());
    });
  }

  // Calls worker(sequence) once per thread, to take tasks from this sequence until none are left in any.
  // If it throws in a thread, the other threads stop, and this throws the exception.
  template <typename Worker>
  void run(const Worker& worker) {
    const int64_t sequences = int64_t(next_.size());
    int64_t threads = std::min(tasks_, num_threads());
    if (steps_ > 0) threads = std::min(threads, 8 * sequences);  // more would mostly wait for their turns
    parallel_for(threads, 1, [&](int64_t thread, int64_t) {
      try {
        worker(thread % sequences);
      } catch (...) {
        failed_.store(true, std::memory_order_relaxed);
        throw;
      }
    });
  }

  // Measures a task if there is a log.
  class Timer {
   public:
    Timer(TaskQueue& queue, int64_t task) : times_(queue.times_.empty() ? nullptr : &queue.times_[task]) {
      if (times_) times_->push_back(-now());
    }
    ~Timer() {
      if (times_) times_->back() += now();
    }

   private:
    std::vector<double>* const times_;
  };

 private:
  static double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) * 1e6 + double(time.tv_nsec) * 1e-3;
  }
  static std::FILE* log() {
    static const char* const path = std::getenv("DCNZOO_TASK_LOG");
    static std::FILE* const file = path ? std::fopen(path, "a") : nullptr;
    return file;
  }
  const int64_t tasks_, streamed_, steps_;
  std::vector<std::atomic<int64_t>> next_;  // of each sequence
  std::vector<Turns> turns_;
  std::atomic<bool> failed_{false};
  std::vector<std::vector<double>> times_;
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
  queue.run([&](int64_t sequence) {
    for (int64_t task; queue.take(task, sequence);) {
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
