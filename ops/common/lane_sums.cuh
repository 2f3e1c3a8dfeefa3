// Deterministic sums over channels on CUDA. A block has 32 columns (neighbouring pixels or bins, one per thread of a
// warp), and 8 threads share the channels of each column.
#pragma once

#include "launch.cuh"

namespace dcnzoo {

constexpr int kSumColumns = 32;
constexpr int kSumLanes = 8;
static_assert(kSumColumns * kSumLanes == kThreads);

// Sums each value over the threads of a column. If the column counts, one thread calls store(i, total) for each.
// All threads of a block must call this function.
template <int Values, typename A, typename Store>
__device__ void sum_over_lanes(const A (&values)[Values], bool counts, const Store& store) {
  static_assert(Values <= kSumLanes, "a lane per value");
  __shared__ A sums[Values][kSumLanes][kSumColumns];
  const int lane = threadIdx.y, column = threadIdx.x;
#pragma unroll
  for (int i = 0; i < Values; ++i) sums[i][lane][column] = values[i];
  __syncthreads();
  if (lane < Values && counts) {
    A total = A(0);
    for (int other = 0; other < kSumLanes; ++other) total += sums[lane][other][column];
    store(lane, total);
  }
  __syncthreads();
}

}  // namespace dcnzoo
