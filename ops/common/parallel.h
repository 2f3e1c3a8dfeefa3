// Threads and scratch memory of CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>

namespace dcnzoo {

// torch's own pool: torch.set_num_threads holds.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, function);
}

// Uninitialised memory, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    if (size_ == 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, (size_ * sizeof(T) + 63) / 64 * 64));
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

// Memory that a thread keeps from call to call: a fresh allocation of this size would be mapped and
// unmapped by the system each time.
template <typename T>
T* thread_scratch(int64_t size) {
  static thread_local Buffer<T> scratch;
  if (scratch.size() < size) scratch = Buffer<T>(size);
  return scratch.data();
}

}  // namespace dcnzoo
