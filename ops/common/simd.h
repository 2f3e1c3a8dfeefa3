// Vectors of the instruction set that is being compiled, by the compiler's vector extensions:
// one source for every capability. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstdint>

#include "cpu_capability.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define DCNZOO_VECTOR_BYTES 64
#define DCNZOO_ROW_BLOCK 12  // 12 × 2 accumulators + 2 operands + 1 broadcast of 32 registers
#elif defined(__AVX2__)
#include <immintrin.h>
#define DCNZOO_VECTOR_BYTES 32
#define DCNZOO_ROW_BLOCK 6  // 6 × 2 + 2 + 1 of 16 registers
#else
#define DCNZOO_VECTOR_BYTES 16
#define DCNZOO_ROW_BLOCK 6
#endif

#define DCNZOO_INLINE inline __attribute__((always_inline))

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

constexpr int kVectorBytes = DCNZOO_VECTOR_BYTES;
constexpr int kRowBlock = DCNZOO_ROW_BLOCK;

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));
template <typename T>
constexpr int kPanel = 2 * kLanes<T>;  // columns of a GEMM panel: two vectors

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <>
struct VectorOf<int32_t> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<int64_t> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;  // unaligned loads and stores are as fast where aligned

template <typename T>
DCNZOO_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

template <typename T>
DCNZOO_INLINE void store(T* to, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

// The same for code that is written for scalars and vectors alike.
template <typename Value, typename T>
DCNZOO_INLINE Value load_lanes(const T* from) {
  if constexpr (sizeof(Value) == sizeof(T)) return *from;
  else return load(from);
}

template <typename T, typename Value>
DCNZOO_INLINE void store_lanes(T* to, Value value) {
  if constexpr (sizeof(Value) == sizeof(T)) *to = value;
  else store<T>(to, value);
}

// The integer as wide as T, so that a vector of one goes with a vector of the other.
template <typename T>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};

DCNZOO_INLINE Vector<float> floor_lanes(Vector<float> value) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_floor_ps((__m512)value);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_floor_ps((__m256)value);
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) value[lane] = __builtin_floorf(value[lane]);
  return value;
#endif
}

DCNZOO_INLINE Vector<double> floor_lanes(Vector<double> value) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_floor_pd((__m512d)value);
#elif defined(__AVX2__)
  return (Vector<double>)_mm256_floor_pd((__m256d)value);
#else
  for (int lane = 0; lane < kLanes<double>; ++lane) value[lane] = __builtin_floor(value[lane]);
  return value;
#endif
}

DCNZOO_INLINE float sum_lanes(Vector<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

DCNZOO_INLINE double sum_lanes(Vector<double> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd((__m512d)v);
#elif defined(__AVX2__)
  const __m128d half =
      _mm_add_pd(_mm256_castpd256_pd128((__m256d)v), _mm256_extractf128_pd((__m256d)v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
#else
  return v[0] + v[1];
#endif
}

// The operations that shared arithmetic (…_math.h) asks for, lane by lane. A mask's lanes are 0 or -1, as
// comparisons of vectors give them.
template <typename Value>
struct VectorLanes {
  template <typename Mask, typename V>
  static DCNZOO_INLINE V choose(Mask mask, V yes, V no) {
    return mask ? yes : no;
  }
  static DCNZOO_INLINE Value floor(Value value) { return floor_lanes(value); }
  template <typename Index>
  static DCNZOO_INLINE Index to_index(Value value) {
    return __builtin_convertvector(value, Index);
  }
};

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
