// Emulates the parts of CUDA that ops/ uses, on the host: the threads of a block take turns on one host thread, each
// until it waits for the others, and one block follows the other. It cannot show races.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#define __global__
#define __device__
#define __shared__ static  // blocks do not overlap
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// A thread runs on its own stack, which ucontext prepares once. After that, _longjmp switches between the threads and
// the scheduler: unlike swapcontext, it makes no system call.
struct EmulatedThread {
  jmp_buf context;
  dim3 index;
  bool waits;
};
constexpr size_t kMostThreads = 1024;
inline EmulatedThread every_thread[kMostThreads];
inline EmulatedThread* running = nullptr;
inline size_t started = 0;
inline jmp_buf scheduler;
inline void (*entry)() = nullptr;

inline void leave() {
  if (_setjmp(running->context) == 0) _longjmp(scheduler, 1);
}

inline void __syncthreads() {
  running->waits = true;
  leave();
}

// All threads of a block must call it, not only those of a warp.
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static T values[1024];
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  values[thread] = value;
  __syncthreads();
  const T other = values[thread ^ mask];
  __syncthreads();
  return other;
}

struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename T>
void atomicAdd(T* address, T value) {
  *address += value;
}
inline void atomicAdd(float4* address, float4 value) {
  address->x += value.x, address->y += value.y, address->z += value.z, address->w += value.w;
}

inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }

constexpr int cudaDevAttrComputeCapabilityMajor = 0;
inline void cudaDeviceGetAttribute(int* value, int, int) { *value = 9; }

using std::min;

constexpr size_t kStack = 1 << 17, kPage = 1 << 12;

// The stack of a thread of a block. The page below it is protected: a stack that overflows ends the process at once
// instead of damaging the memory of other threads.
inline char* stack_of(size_t thread) {
  constexpr size_t kStride = kStack + kPage;
  static char* const stacks = [] {
    void* memory =
        mmap(nullptr, kMostThreads * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    for (size_t i = 0; i < kMostThreads; ++i)
      mprotect(static_cast<char*>(memory) + i * kStride, kPage, PROT_NONE);
    return static_cast<char*>(memory);
  }();
  return stacks + thread * kStride + kPage;
}

inline void run_kernels() {
  for (;;) {
    entry();
    leave();
  }
}

// Runs a thread until it waits or ends. The first threads of a block start first.
inline void enter(size_t thread) {
  running = &every_thread[thread];
  threadIdx = running->index;
  running->waits = false;
  if (_setjmp(scheduler) != 0) return;
  if (thread < started) _longjmp(running->context, 1);
  ++started;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(thread);
  context.uc_stack.ss_size = kStack;
  makecontext(&context, run_kernels, 0);
  setcontext(&context);
}

template <typename Kernel>
void emulate(unsigned blocks, dim3 threads, const Kernel& kernel) {
  constexpr unsigned kMostBlocks = 2;  // grid-stride loops cover the rest
  static const Kernel* launched;
  launched = &kernel;
  entry = [] { (*launched)(); };
  gridDim = dim3(std::min(blocks, kMostBlocks));
  blockDim = threads;
  const size_t count = threads.x * threads.y;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block);
    for (size_t i = 0; i < count; ++i) {
      every_thread[i].index = dim3(i % threads.x, i / threads.x);
      every_thread[i].waits = true;
    }
    for (size_t waiting = count; waiting > 0;) {
      waiting = 0;
      for (size_t i = 0; i < count; ++i) {
        if (!every_thread[i].waits) continue;
        enter(i);
        waiting += every_thread[i].waits;
      }
      if (waiting != 0 && waiting != count) {
        std::fputs("emulation: some threads of a block returned while others wait for them\n", stderr);
        std::abort();
      }
    }
  }
}
