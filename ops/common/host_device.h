// One macro, so that a piece of arithmetic is written once and runs on host and device.
// Always inlined: on the host it is compiled once per instruction set, and the linker must not pick one.
#pragma once

#ifdef __CUDACC__
#define DCNZOO_HD __host__ __device__ __forceinline__
#else
// Always inlined: one copy per instruction set must not become the copy that the linker keeps for all.
#define DCNZOO_HD inline __attribute__((always_inline))
#endif
