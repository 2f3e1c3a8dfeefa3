// One macro, so that a piece of arithmetic is written once and runs on host and device.
#pragma once

#ifdef __CUDACC__
#define DCNZOO_HD __host__ __device__ __forceinline__
#else
#define DCNZOO_HD inline
#endif
