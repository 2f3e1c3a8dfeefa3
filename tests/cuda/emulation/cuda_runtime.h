// Emulates the parts of CUDA that ops/ uses, on the host: one host thread per thread of a block, one block after the
// other. It is slow, and it cannot show races between blocks.
#pragma once

#include <algorithm>
#include <barrier>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks do not overlap

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename T>
void atomicAdd(T* address, T value) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  *address += value;
}

inline int __ffsll(long long value) { return __builtin_ffsll(value); }

using std::min;

template <typename Kernel>
void emulate(unsigned blocks, dim3 threads, const Kernel& kernel) {
  constexpr unsigned kMostBlocks = 2;  // grid-stride loops cover the rest
  gridDim = dim3(std::min(blocks, kMostBlocks));
  blockDim = threads;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    std::barrier<> barrier(threads.x * threads.y);
    block_barrier = &barrier;
    std::vector<std::thread> running;
    for (unsigned y = 0; y < threads.y; ++y)
      for (unsigned x = 0; x < threads.x; ++x)
        running.emplace_back([&kernel, block, x, y] {
          threadIdx = dim3(x, y);
          blockIdx = dim3(block);
          kernel();
        });
    for (std::thread& thread : running) thread.join();
    block_barrier = nullptr;
  }
}
