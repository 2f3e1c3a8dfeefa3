// Reading and writing a map at a sample of a region of interest.
#pragma once

#include "launch.cuh"
#include "roi_math.h"

namespace dcnzoo {

template <typename A, typename T>
__device__ A roi_sample(const T* map, const Lerp<A>& y, const Lerp<A>& x, int64_t width) {
  const T* low = map + y.low * width;
  const T* high = map + y.high * width;
  return y.low_weight * (x.low_weight * A(low[x.low]) + x.high_weight * A(low[x.high])) +
         y.high_weight * (x.low_weight * A(high[x.low]) + x.high_weight * A(high[x.high]));
}

// The adjoint. Atomics: RoIs overlap, and so do the samples of neighbouring bins.
template <typename A>
__device__ void roi_scatter(A gradient, const Lerp<A>& y, const Lerp<A>& x, int64_t width, A* map) {
  A* low = map + y.low * width;
  A* high = map + y.high * width;
  atomicAdd(low + x.low, gradient * y.low_weight * x.low_weight);
  atomicAdd(low + x.high, gradient * y.low_weight * x.high_weight);
  atomicAdd(high + x.low, gradient * y.high_weight * x.low_weight);
  atomicAdd(high + x.high, gradient * y.high_weight * x.high_weight);
}

}  // namespace dcnzoo
