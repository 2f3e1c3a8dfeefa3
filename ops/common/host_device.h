// Marks arithmetic that is written once and runs on host and device. Always inlined: the host compiles it once per
// instruction set, and the linker must not keep only one of the copies.
#pragma once

#ifdef __CUDACC__
#define DCNZOO_HD __host__ __device__ __forceinline__
#else
#define DCNZOO_HD inline __attribute__((always_inline))
#endif
