// A register-blocked matrix product (GEMM) of operands that already have the layout below.
//
// It replaces BLAS because the samplers write an operand directly as panels: no packing, no copy, no allocation. Any
// thread may call it, and results do not depend on the number of threads.
//
// Panels: a matrix [rows][columns] is stored as [columns / kNR][rows][kNR], zero-padded.
#pragma once

#include "integers.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The left operand: element (m, k) is at
// data[(k / block) * block_stride + (k % block) * k_stride + m * row_stride].
// The strides are int64_t or Constant, which leaves more registers.
template <typename T, typename RowStride, typename KStride>
struct LeftOperand {
  const T* data;
  RowStride row_stride;
  KStride k_stride;
  int64_t block, block_stride;
};

template <int64_t value>
using Constant = std::integral_constant<int64_t, value>;

// sum += *a · b for one k. bfloat16: for k and k + 1 at once, where *a is the pair and b is [kLanes][2].
template <typename T>
DCNZOO_INLINE void multiply_add(Vector<T>& sum, const T* a, Vector<T> b) {
  sum += *a * b;
}

DCNZOO_INLINE void multiply_add(Vector<float>& sum, const uint16_t* a, Vector<float> b) {
  int32_t pair;
  __builtin_memcpy(&pair, a, sizeof pair);
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  sum = (Vector<float>)vbfdotq_lane_f32((float32x4_t)sum, vreinterpretq_bf16_f32((float32x4_t)b),
                                        vreinterpret_bf16_s32(int32x2_t{pair, 0}), 0);
#else
  multiply_add_pairs(sum, (Vector<float>)(Vector<int32_t>{} + pair), b);
#endif
}

// Memory to fetch into the L2 cache while a product is computed: `bytes` for every block of the left operand.
struct Ahead {
  const char* data;
  int64_t bytes;
};

// sum[m] += Σ_k A(m, k) · B[k], the loop of the micro-kernel.
template <typename T, typename S, int Rows, int Vectors, typename Left>
DCNZOO_INLINE void add_products(const Left& a, const S* b, int64_t depth, Ahead& ahead,
                                Vector<T> (&sum)[Rows][Vectors]) {
  constexpr int lanes = kLanes<T>, step = sizeof(T) / sizeof(S);
  const auto* a_block = a.data;
  for (int64_t left = depth; left > 0; left -= a.block, a_block += a.block_stride) {
    const int64_t count = (left < a.block ? left : a.block) / step;
    const S* a_k = a_block;
    for (int64_t i = 0; i < ahead.bytes; i += 64) __builtin_prefetch(ahead.data + i, 0, 2);
    ahead.data += ahead.bytes;
#pragma GCC unroll 2  // more would not leave the sums in registers
    for (int64_t k = 0; k < count; ++k) {
      Vector<T> b_k[Vectors];
#pragma GCC unroll 2
      for (int i = 0; i < Vectors; ++i) b_k[i] = load(reinterpret_cast<const T*>(b) + i * lanes);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
        for (int i = 0; i < Vectors; ++i) multiply_add(sum[m][i], a_k + m * a.row_stride, b_k[i]);
      a_k += step * a.k_stride, b += step * kNR<S>;
    }
  }
}

// GEMM micro-kernel: C[m][0..Vectors · kLanes) (+)= sum_k A(m, k) · B[k] for Rows <= kMR rows.
// bfloat16 is multiplied in pairs of k: A(m, k) and A(m, k + 1) are adjacent (k_stride 1, even block and depth), and b
// is [depth / 2][kNR][2].
template <typename T, typename S, int Rows, int Vectors, typename Left>
void micro_kernel(const Left& a, const S* b, int64_t depth, T* c, int64_t c_stride, bool accumulate,
                  Ahead& ahead) {
  Vector<T> sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) sum[m][i] = Vector<T>{};
  add_products<T, S>(a, b, depth, ahead, sum);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < Vectors; ++i) {
      T* const to = c + m * c_stride + i * kLanes<T>;
      store(to, accumulate ? sum[m][i] + load(to) : sum[m][i]);
    }
}

template <typename T, typename S, int Vectors, typename Left, int... I>
DCNZOO_INLINE auto micro_kernel_of(int64_t rows, std::integer_sequence<int, I...>) {
  static constexpr decltype(&micro_kernel<T, S, 1, Vectors, Left>) kernels[] = {
      micro_kernel<T, S, I + 1, Vectors, Left>...};
  return kernels[rows - 1];
}

// C (+)= A · B for `rows` rows and `columns` columns, which are computed in whole vectors.
// b: panels of [depth][kNR]; c: panel j, row m at c + j * c_panel_stride + m * c_row_stride.
// Panels are the outer loop: a panel of B stays in the L2 cache while all rows of A are multiplied by it, and the next
// panel is fetched meanwhile. (This saves time with weights that exceed the L2 cache.)
template <typename T, typename S, typename Left>
void gemm(Left a, int64_t rows, const S* b, int64_t depth, int64_t columns, T* c, int64_t c_row_stride,
          int64_t c_panel_stride, bool accumulate) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<S, uint16_t>) {
    return gemm_of_tiles(a, rows, b, depth, columns, c, c_row_stride, c_panel_stride, accumulate);
  }
#endif
  using Sequence = std::make_integer_sequence<int, kMR>;
  const S* const first = a.data;
  const int64_t panels = ceil_div(columns, kNR<S>);
  const int64_t blocks = ceil_div(rows, kMR), panel_bytes = depth * kNR<S> * int64_t(sizeof(S));
  const int64_t fetched =
      panels > 1 ? round_up(ceil_div(panel_bytes, blocks * ceil_div(depth, a.block)), 64) : 0;
  for (int64_t j = 0; j < panels; ++j) {
    a.data = first;
    const S* const panel = b + j * depth * kNR<S>;
    const bool half = columns - j * kNR<S> <= kLanes<S>;
    Ahead ahead{reinterpret_cast<const char*>(panel) + panel_bytes, j + 1 < panels ? fetched : 0};
    for (int64_t block = 0, done = 0; block < blocks; ++block) {
      const int64_t count = (rows - done + blocks - block - 1) / (blocks - block);  // 64 = 4 · 11 + 2 · 10
      const auto multiply = half ? micro_kernel_of<T, S, 1, Left>(count, Sequence())
                                 : micro_kernel_of<T, S, 2, Left>(count, Sequence());
      multiply(a, panel, depth, c + j * c_panel_stride + done * c_row_stride, c_row_stride, accumulate,
               ahead);
      a.data += count * a.row_stride;
      done += count;
    }
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
