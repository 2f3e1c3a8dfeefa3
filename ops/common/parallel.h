// Threads and scratch memory of CPU kernels.
#pragma once

#include "torch_errors.h"  // before the headers that it changes

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "integers.h"

namespace dcnzoo {

#ifdef DCNZOO_STD_THREADS

// For `nox -s sanitize`: the sanitizer does not see the synchronisation of torch's thread pool.
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

// If `function` throws in a thread, this throws the exception: torch's threads need not have our C++ runtime (tensor.h).
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count <= 0) return;
  std::exception_ptr error;
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      function(begin, end);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

#endif

// Lets several threads do the same step of their tasks one after another, in the order of the tasks.
class Turns {
 public:
  // Waits until do_in_turn() has returned for all smaller numbers, then calls step(). Does nothing if `failed` becomes true:
  // the turn of a task that threw never ends.
  template <typename Step>
  void do_in_turn(int64_t number, const std::atomic<bool>& failed, const Step& step) {
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
// The result of a task must not depend on its thread.
class TaskQueue {
 public:
  // Task i belongs to sequence i % sequences. The tasks of a sequence have `steps` steps that they do in turn.
  explicit TaskQueue(int64_t tasks, int64_t sequences = 1, int64_t steps = 0)
      : tasks_(tasks), steps_(steps), next_(sequences), turns_(sequences * steps) {}

  // Takes the next task of `sequence`. If it has none left, `sequence` becomes the one with the most tasks left.
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

  // Does step `index` of a task, after the previous task of its sequence has done the same step.
  template <typename Step>
  void do_in_turn(int64_t task, int64_t index, const Step& step) {
    const int64_t sequences = int64_t(next_.size());
    turns_[task % sequences * steps_ + index].do_in_turn(task / sequences, failed_, step);
  }

  // Calls worker(sequence) once per thread. A worker starts with this sequence and takes tasks until all are taken.
  // If it throws in a thread, the other threads stop, and this throws the exception.
  template <typename Worker>
  void share_out(const Worker& worker) {
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

 private:
  const int64_t tasks_, steps_;
  std::vector<std::atomic<int64_t>> next_;  // of each sequence
  std::vector<Turns> turns_;
  std::atomic<bool> failed_{false};
};

// Calls function(task) for all tasks, in parallel; they start in the order of their numbers.
template <typename Function>
void for_each_task(int64_t count, const Function& function) {
  TaskQueue queue(count);
  queue.share_out([&](int64_t sequence) {
    for (int64_t task; queue.take(task, sequence);) function(task);
  });
}

// Uninitialised memory, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    if (size_ == 0) return;
    data_.reset(static_cast<T*>(operator new(round_up(size_ * sizeof(T), 64), kAlignment)));
  }
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* data) const { operator delete(data, kAlignment); }
  };
  static constexpr std::align_val_t kAlignment{64};
  std::unique_ptr<T, Free> data_;
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
