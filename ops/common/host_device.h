// One macro, so that a piece of arithmetic is written once and runs on host and device.
// Always inlined: on the host it is compiled once per instruction set, and the linker must not pick one.
#pragma once

#ifdef __CUDACC__
#define DCNZOO_HD __host__ __device__ __forceinline__
#else
#define DCNZOO_HD inline __attribute__((always_inline))
#endif
