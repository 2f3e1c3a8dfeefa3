// The backward of sampling a region of interest (RoI).
#pragma once

#include "launch.cuh"
#include "roi_math.h"

namespace dcnzoo {

// The adjoint of roi_sample. Atomics: RoIs overlap, and so do the samples of neighbouring bins.
template <typename A>
__device__ void roi_scatter(A gradient, const Lerp<A>& y, const Lerp<A>& x, int64_t width, A* map) {
  each_pixel(y, x, width, [&](int64_t pixel, A weight) { atomicAdd(map + pixel, weight * gradient); });
}

}  // namespace dcnzoo
