// Atomic additions to neighbouring values.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "tensor.h"

namespace dcnzoo {

// Adds V values. From sm_90 on, one instruction adds four floats; V must then be 1 or a multiple of four, and `to`
// aligned to four values.
template <int V, typename A>
__device__ void atomic_add(A* to, const A (&values)[V]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr bool vectors = V % 4 == 0 && std::is_same_v<A, float>;
  if constexpr (vectors) {
#pragma unroll
    for (int v = 0; v < V; v += 4)
      atomicAdd(reinterpret_cast<float4*>(to + v),
                make_float4(values[v], values[v + 1], values[v + 2], values[v + 3]));
  }
#else
  constexpr bool vectors = false;
#endif
  if constexpr (!vectors) {
#pragma unroll
    for (int v = 0; v < V; ++v) atomicAdd(to + v, values[v]);
  }
}

// Whether the GPU adds vectors. On others, neighbouring threads should add neighbouring values.
inline bool adds_vectors(const Tensor& on) {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, on.get_device_index());
  return major >= 9;
}

}  // namespace dcnzoo
