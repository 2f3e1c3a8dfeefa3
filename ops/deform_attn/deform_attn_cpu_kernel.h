// The interface of deform_attn_cpu_kernel.cpp (no torch: arithmetic, compiled once per instruction set) to
// deform_attn_cpu.cpp (torch: checks, allocation, threads).
#pragma once

#include "../common/cpu_capability.h"
#include "deform_attn_math.h"

namespace dcnzoo {

// Tables of points and rows of copied channels are padded to a multiple of this: the lanes of the widest vector.
constexpr int64_t kMostLanes = 16;

// The SamplePoints of a query as arrays [point], repeated up to a multiple of kMostLanes.
template <typename T>
struct SampleTable {
  using Index = IntegerOf<T>;
  const T *tap[2], *scale[2], *extent[2];  // extent: size, converted to T
  const Index *size[2], *start;
};

// The offset, the weight, or the gradient of one of them. Its type is T, or bfloat16 if S is bfloat16; the pointer to the
// other type is null.
template <typename T, typename S>
struct Stored {
  T* values;
  S* bits;
};

// T is the type of the computation, S that of input, output and their gradients: T or bfloat16.
template <typename T, typename S = T>
struct DeformAttnCpu : DeformAttnSizes {
  SampleTable<T> table;
  T origin[2], step[2];  // a query's base: origin + step · its position on a grid of width out_w
  int64_t out_w;

  const S* input;                           // [batch][pixels][groups · channels]
  Stored<const T, const S> offset, weight;  // laid out by offset_at and weight_at

  S* output;  // [batch][queries][groups · channels]

  // backward
  const S* grad_output;                   // like output
  S* grad_input;                          // like input, or null
  Stored<T, S> grad_offset, grad_weight;  // like offset and weight, both or null
  bool in_place;  // adds to grad_input, which has type T and starts as zeros, without copies of maps
};

template <typename T, typename S = T>
struct DeformAttnKernels {
  // Queries [begin, end) of an image, all groups. plan: scratch for 8 · points (padded) of type T.
  void (*forward)(const DeformAttnCpu<T, S>&, int64_t image, int64_t begin, int64_t end, T* plan);
  // All queries of an image, one group: no two calls write the same memory. scratch: for (2 · pixels + 1) ·
  // channels (padded to a multiple of kMostLanes) of type T.
  void (*backward)(const DeformAttnCpu<T, S>&, int64_t image, int64_t group, T* scratch);
};

DCNZOO_DECLARE_KERNELS(StoredKernelTable<DeformAttnKernels>, deform_attn_kernels)

}  // namespace dcnzoo
