// A register-blocked matrix product on operands that the caller has laid out for it.
//
// It is ours, not BLAS's, because the operand is sampled into the panel layout directly: nothing is
// packed, copied or allocated, any thread may call it, and a result depends on no thread count.
//
// Panels: a matrix [rows][columns] is stored as [columns / kPanel][rows][kPanel], zero-padded.
#pragma once

#include "integers.h"
#include "simd.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The left operand: element (m, k) is at
// data[(k / block) * block_stride + (k % block) * k_stride + m * row_stride].
template <typename T>
struct LeftOperand {
  const T* data;
  int64_t row_stride, k_stride, block, block_stride;
};

// C[m][0..kPanel) (+)= sum_k A(m, k) · B[k][0..kPanel), for Rows rows.
template <typename T, int Rows>
void multiply_block(const LeftOperand<T>& a, const T* b, int64_t depth, T* c, int64_t c_stride,
                    bool accumulate) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sum[Rows][2];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) sum[m][0] = sum[m][1] = Vector<T>{};
  const T* a_block = a.data;
  for (int64_t left = depth; left > 0; left -= a.block, a_block += a.block_stride) {
    const int64_t count = left < a.block ? left : a.block;
    const T* a_k = a_block;
    for (int64_t k = 0; k < count; ++k, a_k += a.k_stride, b += kPanel<T>) {
      const Vector<T> b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const T value = a_k[m * a.row_stride];
        sum[m][0] += value * b0;
        sum[m][1] += value * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    T* row = c + m * c_stride;
    if (accumulate) {
      sum[m][0] += load(row);
      sum[m][1] += load(row + lanes);
    }
    store(row, sum[m][0]);
    store(row + lanes, sum[m][1]);
  }
}

#if defined(__AVX512BF16__)
// bfloat16 in pairs of k, summed in float. A(m, k) and A(m, k + 1) are neighbours (k_stride 1, even
// block and depth); b is [depth / 2][kPanel][2].
template <typename T, int Rows>
void multiply_block(const LeftOperand<uint16_t>& a, const uint16_t* b, int64_t depth, float* c,
                    int64_t c_stride, bool accumulate) {
  constexpr int lanes = kLanes<float>;
  __m512 sum[Rows][2];
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
  const uint16_t* a_block = a.data;
  for (int64_t left = depth; left > 0; left -= a.block, a_block += a.block_stride) {
    const int64_t count = left < a.block ? left : a.block;
    for (int64_t k = 0; k < count; k += 2, b += 2 * kPanel<uint16_t>) {
      const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 2 * lanes);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        int32_t pair;
        __builtin_memcpy(&pair, a_block + m * a.row_stride + k, sizeof pair);
        const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
        sum[m][0] = _mm512_dpbf16_ps(sum[m][0], value, b0);
        sum[m][1] = _mm512_dpbf16_ps(sum[m][1], value, b1);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    float* row = c + m * c_stride;
    if (accumulate) {
      sum[m][0] = _mm512_add_ps(sum[m][0], _mm512_loadu_ps(row));
      sum[m][1] = _mm512_add_ps(sum[m][1], _mm512_loadu_ps(row + lanes));
    }
    _mm512_storeu_ps(row, sum[m][0]);
    _mm512_storeu_ps(row + lanes, sum[m][1]);
  }
}
#endif

template <typename T, typename S>
using MultiplyBlock = void (*)(const LeftOperand<S>&, const S*, int64_t, T*, int64_t, bool);

template <typename T, typename S>
DCNZOO_INLINE MultiplyBlock<T, S> multiply_block_of(int64_t rows) {
  static constexpr MultiplyBlock<T, S> blocks[] = {
      nullptr,
      multiply_block<T, 1>,
      multiply_block<T, 2>,
      multiply_block<T, 3>,
      multiply_block<T, 4>,
      multiply_block<T, 5>,
      multiply_block<T, 6>,
#if DCNZOO_ROW_BLOCK == 12
      multiply_block<T, 7>,
      multiply_block<T, 8>,
      multiply_block<T, 9>,
      multiply_block<T, 10>,
      multiply_block<T, 11>,
      multiply_block<T, 12>,
#endif
  };
  return blocks[rows];
}

// C (+)= A · B for `rows` rows and `panels` panels of columns.
// b: panels of [depth][kPanel]; c: panel j, row m at c + j * c_panel_stride + m * c_row_stride.
// Panels are the outer loop: one of B stays in the second-level cache while the rows of A pass by.
template <typename T, typename S>
void multiply(LeftOperand<S> a, int64_t rows, const S* b, int64_t depth, int64_t panels, T* c,
              int64_t c_row_stride, int64_t c_panel_stride, bool accumulate) {
  const S* const first = a.data;
  const int64_t blocks = ceil_div(rows, kRowBlock);
  for (int64_t j = 0; j < panels; ++j) {
    a.data = first;
    for (int64_t block = 0, done = 0; block < blocks; ++block) {
      const int64_t count = (rows - done + blocks - block - 1) / (blocks - block);  // 64 = 11 · 4 + 10 · 2
      multiply_block_of<T, S>(count)(a, b + j * depth * kPanel<S>, depth,
                                     c + j * c_panel_stride + done * c_row_stride, c_row_stride, accumulate);
      a.data += count * a.row_stride;
      done += count;
    }
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
