// SIMD vectors of the instruction set being compiled, through the compiler's vector extensions: one source for every
// capability. Included by *_cpu_kernel.cpp only.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu_capability.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define DCNZOO_VECTOR_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define DCNZOO_VECTOR_BYTES 32
#elif defined(__AMX_BF16__)  // nox -s sanitize: the kernels of AMX with vectors in C++
#define DCNZOO_VECTOR_BYTES 64
#else
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#define DCNZOO_VECTOR_BYTES 16
#endif

// Only some CPUs can multiply bfloat16, and only they have kernels for it.
#if defined(__AVX512BF16__) || defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define DCNZOO_BFLOAT16_KERNELS(...) __VA_ARGS__
#else
#define DCNZOO_BFLOAT16_KERNELS(...) \
  {                                  \
  }
#endif

#define DCNZOO_INLINE inline __attribute__((always_inline))

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

constexpr int kVectorBytes = DCNZOO_VECTOR_BYTES;
// Rows of the GEMM micro-kernel. It uses 12 × 2 accumulators + 2 operands + 1 broadcast of 32 registers, or
// 6 × 2 + 2 + 1 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMR = 12;
#else
constexpr int kMR = 6;
#endif

template <typename T>  // bfloat16: half a vector, which converts to a whole vector of float
constexpr int kLanes = kVectorBytes / int(sizeof(T) == 2 ? sizeof(float) : sizeof(T));
template <typename T>
constexpr int kNR = 2 * kLanes<T>;  // columns of a GEMM panel: two vectors

// The depth of a GEMM of the storage type S is a multiple of this: bfloat16 is multiplied in pairs, or in tiles of 16 pairs.
template <typename T, typename S>
#if defined(__AMX_BF16__)
constexpr int64_t kDepthStep = sizeof(T) == sizeof(S) ? 1 : 32;
#else
constexpr int64_t kDepthStep = sizeof(T) / sizeof(S);
#endif

template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <typename T, int lanes = kLanes<T>>  // unaligned accesses cost nothing extra at aligned addresses
using Vector = typename VectorOf<T, lanes>::type;
template <typename T>
using HalfVector = Vector<T, kLanes<T> / 2>;

template <typename T>
DCNZOO_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

template <typename T>
DCNZOO_INLINE void store(T* to, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

#if defined(__AVX512F__)
template <typename T>
DCNZOO_INLINE auto first_lanes(int64_t count) {
  return std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>((1u << (count > 0 ? count : 0)) - 1);
}
#endif

// The half vector, followed by zeros.
template <typename T>
DCNZOO_INLINE Vector<T> widened(HalfVector<T> half) {
#if defined(__AVX512F__)
  return (Vector<T>)_mm512_zextps256_ps512((__m256)half);
#elif defined(__AVX2__)
  return (Vector<T>)_mm256_zextps128_ps256((__m128)half);
#else
  Vector<T> whole{};
  __builtin_memcpy(&whole, &half, sizeof half);
  return whole;
#endif
}

// Converts from the storage type: bfloat16, given as its bits (the upper half of a float), to float.
DCNZOO_INLINE float from_stored(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

// Rounds to nearest, ties to even, as torch does.
DCNZOO_INLINE Vector<uint16_t> to_bfloat16(Vector<float> value) {
#if defined(__AVX512BF16__)
  return (Vector<uint16_t>)_mm512_cvtneps_pbh((__m512)value);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return (Vector<uint16_t>)vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)value));
#else
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  const Wide bits = (Wide)value;
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide quiet = (bits >> 16) | 0x40;  // NaN: rounding could make it infinite
  return __builtin_convertvector((Wide)(value != value ? quiet : rounded), Vector<uint16_t>);
#endif
}

DCNZOO_INLINE HalfVector<uint16_t> to_bfloat16(HalfVector<float> value) {
  const Vector<uint16_t> bits = to_bfloat16(widened<float>(value));
  return *reinterpret_cast<const HalfVector<uint16_t>*>(&bits);
}

DCNZOO_INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if (value != value) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename Value>
DCNZOO_INLINE Value from_stored(Value value) {
  return value;
}

// Converts to the storage type S.
template <typename S, typename Value>
DCNZOO_INLINE auto to_stored(Value value) {
  if constexpr (std::is_same_v<S, uint16_t>)
    return to_bfloat16(value);
  else
    return value;
}

// The elements at `index`, and for pairs also those behind them: Value is a vector or a scalar.
template <typename Value, typename T, typename Index, int... I>
DCNZOO_INLINE Value gather_lanes(const T* from, Index index, std::integer_sequence<int, I...>) {
  return Value{from[index[I]]...};
}

template <typename Value, typename T, typename Index>
DCNZOO_INLINE Value gather(const T* from, Index index) {
  if constexpr (std::is_arithmetic_v<Value>)
    return from[index];
  else
    return gather_lanes<Value>(from, index, std::make_integer_sequence<int, kLanes<T>>());
}

// For code that scalars, vectors and half vectors share: Value is one of them. Converts bfloat16.
template <typename Value, typename S>
DCNZOO_INLINE Value load_lanes(const S* from) {
  if constexpr (std::is_arithmetic_v<Value>) {
    return from_stored(*from);
  } else if constexpr (std::is_same_v<S, uint16_t>) {
    constexpr int lanes = sizeof(Value) / sizeof(float);
    const auto bits = *reinterpret_cast<const Vector<uint16_t, lanes>*>(from);
#if defined(__AVX512F__)  // GCC 12 converts a vector half by half
    if constexpr (lanes == kLanes<float>)
      return (Value)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
    else
      return (Value)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#else
    return (Value)(__builtin_convertvector(bits, Vector<uint32_t, lanes>) << 16);
#endif
  } else {
    return *reinterpret_cast<const Vector<S, sizeof(Value) / sizeof(S)>*>(from);
  }
}

// Two vectors of bfloat16, converted without a shuffle: the even elements are the lower halves of 32-bit lanes, the odd ones
// the upper halves.
struct EvenOdd {
  Vector<float> even, odd;

  DCNZOO_INLINE void operator+=(const EvenOdd& other) { even += other.even, odd += other.odd; }
  DCNZOO_INLINE friend EvenOdd operator*(float factor, const EvenOdd& value) {
    return {factor * value.even, factor * value.odd};
  }
  DCNZOO_INLINE friend EvenOdd operator*(const EvenOdd& value, float factor) { return factor * value; }
  DCNZOO_INLINE friend EvenOdd operator*(const EvenOdd& a, const EvenOdd& b) {
    return {a.even * b.even, a.odd * b.odd};
  }
};

template <typename Value, std::enable_if_t<std::is_same_v<Value, EvenOdd>, int> = 0>
DCNZOO_INLINE EvenOdd load_lanes(const uint16_t* from) {
  typedef uint32_t Pairs __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
  const Pairs pairs = *reinterpret_cast<const Pairs*>(from);
  return {(Vector<float>)(pairs << 16), (Vector<float>)(pairs & 0xffff0000u)};
}

// sum += a · b, both of pairs of bfloat16
DCNZOO_INLINE void multiply_add_pairs(Vector<float>& sum, Vector<float> a, Vector<float> b) {
#if defined(__AVX512BF16__) && defined(__clang__) && __clang_major__ == 16
  // Clang 16 crashes when it compiles the intrinsic with a broadcast operand.
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
#elif defined(__AVX512BF16__)
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const auto pairs = [](const Vector<float>& of) {
    return load_lanes<EvenOdd>(reinterpret_cast<const uint16_t*>(&of));
  };
  const EvenOdd product = pairs(a) * pairs(b);
  sum += product.even + product.odd;
#endif
}

template <typename S, typename Value>
DCNZOO_INLINE void store_lanes(S* to, Value value) {
  const auto stored = to_stored<S>(value);
  if constexpr (std::is_arithmetic_v<Value>)
    *to = stored;
  else
    *reinterpret_cast<Vector<S, sizeof(stored) / sizeof(S)>*>(to) = stored;
}

template <typename S>  // the type of the computation
using Computed = std::conditional_t<std::is_same_v<S, uint16_t>, float, S>;

// Loads the first `count` lanes; the others are zero, and their memory is not read.
template <typename S, typename T = Computed<S>>
DCNZOO_INLINE Vector<T> load_some(const S* from, int64_t count) {
  if (count >= kLanes<T>) return load_lanes<Vector<T>>(from);
#if defined(__AVX512F__)
  const auto lanes = first_lanes<T>(count);
  if constexpr (sizeof(S) == 2)
    return (Vector<T>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16);
  else if constexpr (sizeof(S) == 4)
    return (Vector<T>)_mm512_maskz_loadu_ps(lanes, from);
  else
    return (Vector<T>)_mm512_maskz_loadu_pd(lanes, from);
#else
  Vector<T> value{};
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = from_stored(from[lane]);
  return value;
#endif
}

template <typename S, typename T = Computed<S>>
DCNZOO_INLINE void store_some(S* to, Vector<T> value, int64_t count) {
  if (count >= kLanes<T>) return store_lanes(to, value);
  const auto stored = to_stored<S>(value);
#if defined(__AVX512F__)
  const auto lanes = first_lanes<T>(count);
  if constexpr (sizeof(S) == 2)
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)stored);
  else if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(to, lanes, (__m512)stored);
  else
    _mm512_mask_storeu_pd(to, lanes, (__m512d)stored);
#else
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = stored[lane];
#endif
}

// Convert a row to and from the storage type.
template <typename T, typename S>
void store_row(const T* __restrict from, S* __restrict to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store_lanes(to + i, load(from + i));
  for (; i + kLanes<T> / 2 <= count; i += kLanes<T> / 2)
    store_lanes(to + i, load_lanes<HalfVector<T>>(from + i));
  for (; i < count; ++i) store_lanes(to + i, from[i]);
}

template <typename T, typename S>
void load_row(const S* __restrict from, T* __restrict to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load_lanes<Vector<T>>(from + i));
  for (; i < count; ++i) to[i] = from_stored(from[i]);
}

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

// Whether every lane is zero; false for NaN.
template <typename T>
DCNZOO_INLINE bool all_zero(Vector<T> value) {
  const auto different = value != Vector<T>{};
  IntegerOf<T> any = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) any |= different[lane];
  return any == 0;
}

// Whether a matrix, whose rows are `stride` apart, has no Inf and no NaN.
template <typename T, typename S>
bool all_finite(const S* from, int64_t stride, int64_t rows, int64_t columns) {
  Vector<IntegerOf<T>> bits{};  // x - x is 0, or NaN if x is not finite
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < columns; c += kLanes<T>) {
      const Vector<T> value = load_some(from + row * stride + c, columns - c);
      bits |= (Vector<IntegerOf<T>>)(value - value);
    }
  return all_zero<T>((Vector<T>)bits);
}

// Elements of a and b, numbered from a's first element on. GCC 11 has no __builtin_shufflevector, and Clang has no
// __builtin_shuffle.
template <int... I, typename V>
DCNZOO_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){I...});
#endif
}

// Takes elements of a and b in turn, (a0 b0 a1 b1 …), from number `first` of each on.
template <typename T, int first, int... I>
DCNZOO_INLINE Vector<T> zip(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  return shuffle<(first + I / 2 + (I % 2) * kLanes<T>)...>(a, b);
}

template <typename T>
DCNZOO_INLINE void join_pairs(Vector<T> x, Vector<T> y, Vector<T>& low, Vector<T>& high) {
  using Sequence = std::make_integer_sequence<int, kLanes<T>>;
  low = zip<T, 0>(x, y, Sequence{}), high = zip<T, kLanes<T> / 2>(x, y, Sequence{});
}

// Every second element of a and b, from `first` on.
template <typename T, int first, int... I>
DCNZOO_INLINE Vector<T> unzip(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  return shuffle<(first + 2 * I)...>(a, b);
}

// Pairs (x0 y0 x1 y1 …) in two vectors -> x and y.
template <typename T>
DCNZOO_INLINE void split_pairs(Vector<T> low, Vector<T> high, Vector<T>& x, Vector<T>& y) {
  using Sequence = std::make_integer_sequence<int, kLanes<T>>;
  x = unzip<T, 0>(low, high, Sequence{}), y = unzip<T, 1>(low, high, Sequence{});
}

// Two floats as the bits of a double.
DCNZOO_INLINE double load_pair(const float* from) {
  double pair;
  __builtin_memcpy(&pair, from, sizeof pair);
  return pair;
}

// Loads the elements at index and at index + 1: two floats at a time. Value is a vector or a scalar.
template <typename Value, typename T, typename Index>
DCNZOO_INLINE void gather_pairs(const T* from, Index index, Value& first, Value& second) {
  if constexpr (std::is_arithmetic_v<Value> || sizeof(T) == sizeof(double)) {
    first = gather<Value>(from, index), second = gather<Value>(from + 1, index);
  } else {
    constexpr int half = kLanes<T> / 2;
    Vector<double> pairs[2];
    for (int i = 0; i < half; ++i) {
      pairs[0][i] = load_pair(from + index[i]);
      pairs[1][i] = load_pair(from + index[half + i]);
    }
    split_pairs<T>((Vector<T>)pairs[0], (Vector<T>)pairs[1], first, second);
  }
}

// Transposes kLanes × kLanes elements: zipping row i with row i + half, log2(kLanes) times, transposes a square.
// from(i) and to(i) are the rows.
template <typename T, typename From, typename To>
DCNZOO_INLINE void transpose_square(const From& from, const To& to) {
  constexpr int lanes = kLanes<T>;
  Vector<T> rows[2][lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[0][i] = load<T>(from(i));
  int now = 0;
#pragma GCC unroll 4
  for (int width = 1; width < lanes; width *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i)
      join_pairs<T>(rows[now][i], rows[now][i + lanes / 2], rows[1 - now][2 * i], rows[1 - now][2 * i + 1]);
    now = 1 - now;
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store<T>(to(i), rows[now][i]);
}

// The sum of each of kLanes rows, [row][kLanes]. Zipping and adding row i and row i + half, log2(kLanes)
// times, leaves row i's sum in lane i.
template <typename T>
DCNZOO_INLINE Vector<T> sum_rows(const T* rows) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sum[lanes], low, high;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) sum[i] = load(rows + i * lanes);
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      join_pairs<T>(sum[i], sum[i + half], low, high);
      sum[i] = low + high;
    }
  return sum[0];
}

// [rows][columns] -> [columns][rows]
template <typename T>
void transpose(const T* __restrict from, int64_t from_stride, T* __restrict to, int64_t to_stride,
               int64_t rows, int64_t columns) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
  // The inner loop follows rows of the larger stride: the CPU prefetches the rest of a row if few rows are in use.
  const bool by_rows = from_stride > to_stride;
  const int64_t outer = by_rows ? whole_rows : whole_columns, inner = by_rows ? whole_columns : whole_rows;
  for (int64_t i = 0; i < outer; i += lanes)
    for (int64_t j = 0; j < inner; j += lanes) {
      const int64_t r = by_rows ? i : j, c = by_rows ? j : i;
      transpose_square<T>([&](int i) { return from + (r + i) * from_stride + c; },
                          [&](int i) { return to + (c + i) * to_stride + r; });
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_stride + r] = from[r * from_stride + c];
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
