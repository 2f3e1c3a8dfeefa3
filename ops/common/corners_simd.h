// corners.h for SIMD vectors, and the form in which sampling points are stored. Included by *_cpu_kernel.cpp only.
#pragma once

#include "simd.h"
#include "corners.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The operations that the shared arithmetic (corners.h) needs, lane by lane. The lanes of a mask are 0 or -1, as vector
// comparisons return them.
template <typename Value>
struct SimdTraits {
  template <typename Mask, typename V>
  static DCNZOO_INLINE V blend(Mask mask, V yes, V no) {
    return mask ? yes : no;
  }
  static DCNZOO_INLINE Value floor(Value value) { return floor_lanes(value); }
  template <typename Index>
  static DCNZOO_INLINE Index to_index(Value value) {
    return __builtin_convertvector(value, Index);
  }
};

// Not a specialisation of dcnzoo::VecTraits: two capabilities have vectors of the same size, so that one specialisation
// would have several definitions.
template <typename Value>
using VecTraitsOf =
    std::conditional_t<std::is_arithmetic_v<Value>, dcnzoo::VecTraits<Value>, SimdTraits<Value>>;

// The corners of points in the form that a sampling loop reads. A point is whole if all its corners are inside the map
// and its factor (the mask) is finite: then `index` of the first corner is not negative, and the loop needs no branch
// per corner. For any other point, the loop reads only the corners inside the map and multiplies by `rest` at the end.
// The result then equals the plain formula, even if the map, the factor or a gradient is Inf or NaN.
template <typename Value, typename Index, int Rank>
struct StoredCorners {
  static constexpr int count = 1 << Rank;
  Index index[count];  // -1 outside the map; the first one is stored_index(…) if the point is not whole
  Value factor, rest;  // their product is the given factor; factor is always finite
};

// Encodes and decodes the index of the first corner of a point that is not whole. The code is always negative.
template <typename Index>
DCNZOO_INLINE Index stored_index(Index index) {
  return -2 - index;
}

// The index of the first corner, or -1, from its stored form.
template <typename Index>
DCNZOO_INLINE Index first_index(Index stored) {
  return stored >= 0 ? stored : stored_index(stored);
}

template <typename Value, typename Index, int Rank>
DCNZOO_INLINE StoredCorners<Value, Index, Rank> store_corners(const Corners<Value, Index, Rank>& corners,
                                                              Value factor) {
  using On = VecTraitsOf<Value>;
  constexpr int count = 1 << Rank;
  const Value zero{}, one = zero + 1;
  const Index none = Index{} - 1;
  StoredCorners<Value, Index, Rank> stored;
  for (int corner = 0; corner < count; ++corner)
    stored.index[corner] = On::blend(corners.valid[corner] != zero, corners.index[corner], none);
  const auto finite = factor - factor == zero;
  stored.factor = On::blend(finite, factor, one);
  stored.rest = On::blend(finite, one, factor);
  // if the lowest and the highest corner are inside, all are
  const auto whole = (corners.valid[0] + corners.valid[count - 1] > one) & finite;
  stored.index[0] = On::blend(whole, stored.index[0], stored_index(stored.index[0]));
  return stored;
}

// Moves the corners of a point into the map, so that the point is whole; the corners that were outside have weight 0, and so
// have those of a point that does not count. Writes the weights, and returns the index of the first corner. Every axis has at
// least two pixels.
template <typename Value, typename Index, int Rank, typename Size>
DCNZOO_INLINE Index whole_corners(const Corners<Value, Index, Rank>& corners, const Size* size,
                                  Value* weight) {
  using On = VecTraitsOf<Value>;
  const Value zero{}, one = zero + 1;
  const Index start{};
  Index index{};
  weight[0] = On::blend(corners.inside, one, zero);
  for (int axis = 0; axis < Rank; ++axis) {
    const Index last = start + (size[axis] - 2);
    const auto before = corners.low[axis]<start, after = corners.low[axis]> last;
    const Value high = corners.fraction[axis], low = one - high;
    const Value first = On::blend(before, high, On::blend(after, zero, low));
    const Value second = On::blend(before, zero, On::blend(after, low, high));
    index = index * size[axis] + On::blend(before, start, On::blend(after, last, corners.low[axis]));
    for (int corner = (1 << axis) - 1; corner >= 0; --corner) {
      weight[2 * corner + 1] = weight[corner] * second;
      weight[2 * corner] = weight[corner] * first;
    }
  }
  return index;
}

// The corners of a point that are inside the map. index_of(corner) returns the stored index.
template <int Count>
struct InsideCorners {
  int count = 0;
  int corner[Count];
  int64_t index[Count];

  template <typename IndexOf>
  DCNZOO_INLINE explicit InsideCorners(const IndexOf& index_of) {
    for (int c = 0; c < Count; ++c) {
      const int64_t stored = index_of(c), at = c ? stored : first_index(stored);
      if (at < 0) continue;
      corner[count] = c;
      index[count++] = at;
    }
  }
};

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
