// The points of attention: where a query's fields lie, the corners of its points, and the gradients of its fields.
// Included by deform_attn_cpu_kernel.cpp only.
#pragma once

#include "../common/corners_simd.h"
#include "../common/integers.h"
#include "deform_attn_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

constexpr int kCorners = 4;

// The number of products of one corner, [point of the chunk][kLanes], which sum_rows reduces.
template <typename T>
constexpr int64_t kRows = kLanes<T> * kLanes<T>;

// The position of a query's fields for a group, and the base of its coordinates.
template <typename T>
struct Place {
  int64_t image, query, group;
  int64_t offset, weight;
  T base[2];

  Place() = default;
  template <typename S>
  DCNZOO_INLINE Place(const DeformAttnCpu<T, S>& p, int64_t image, int64_t query, int64_t group)
      : image(image), query(query), group(group) {
    const int64_t row = image * p.queries + query;
    offset = p.offset_at.first + row * p.offset_at.query + group * p.offset_at.group;
    weight = p.weight_at.first + row * p.weight_at.query + group * p.weight_at.group;
    base[0] = p.origin[0] + p.step[0] * T(query / p.out_w);
    base[1] = p.origin[1] + p.step[1] * T(query % p.out_w);
  }

  // The index of its first channel in the output, and in the first pixel of the image's input.
  DCNZOO_INLINE int64_t output(const DeformAttnSizes& p) const {
    return ((image * p.queries + query) * p.groups + group) * p.channels;
  }
  DCNZOO_INLINE int64_t map(const DeformAttnSizes& p) const {
    return (image * p.pixels * p.groups + group) * p.channels;
  }
};

// The most places whose points fit into a vector; 1 if the points of a single place do not.
template <typename T>
DCNZOO_INLINE int64_t places_of_chunk(const DeformAttnSizes& p) {
  return p.points < 1 || p.points > kLanes<T> ? 1 : kLanes<T> / p.points;
}

// Loads the first `count` lanes, from `at` on.
template <typename T, typename S>
DCNZOO_INLINE Vector<T> load_stored(const Stored<const T, const S>& from, int64_t at, int64_t count) {
  if constexpr (!std::is_same_v<S, T>)
    if (from.bits) return load_some(from.bits + at, count);
  return load_some(from.values + at, count);
}

template <typename T, typename S>
DCNZOO_INLINE void store_stored(const Stored<T, S>& to, int64_t at, Vector<T> value, int64_t count) {
  if constexpr (!std::is_same_v<S, T>)
    if (to.bits) return store_some(to.bits + at, value, count);
  store_some(to.values + at, value, count);
}

template <typename T, typename S>
DCNZOO_INLINE const void* address(const Stored<T, S>& tensor, int64_t at) {
  if constexpr (!std::is_same_v<S, T>)
    if (tensor.bits) return tensor.bits + at;
  return tensor.values + at;
}

// A vector of points, one in each lane: those of one place from number `first` on, or all points of several places, one
// place after another.
template <typename T>
struct Chunk {
  using Index = typename SampleTable<T>::Index;
  static constexpr int64_t lanes = kLanes<T>;
  const Place<T>* place;
  int64_t places, first, count;             // count: the points of each place
  Corners<Vector<T>, Vector<Index>, 2> at;  // index: includes the map's start
  StoredCorners<Vector<T>, Vector<Index>, 2> stored;
  Vector<T> factor;

  // The points in memory, as in StoredCorners
  struct Points {
    Index index[kCorners][lanes];
    T weight[kCorners][lanes], rest[lanes];
  };

  template <typename S>
  DCNZOO_INLINE Chunk(const DeformAttnCpu<T, S>& p, const Place<T>* place, int64_t places, int64_t first)
      : place(place),
        places(places),
        first(first),
        count(p.points - first < lanes ? p.points - first : lanes) {
    Vector<T> base[2] = {place->base[0] + Vector<T>{}, place->base[1] + Vector<T>{}};
    Vector<T> pairs[2];
    if (places > 1) {
      // The fields of all places, one after another. Each store writes a whole vector; the next one overwrites its unused
      // lanes.
      T offsets[3 * lanes], weights[2 * lanes], bases[2][2 * lanes];
      for (int64_t i = 0; i < places; ++i) {
        const int64_t lane = first_lane(i);
        store(offsets + 2 * lane, load_stored(p.offset, place[i].offset, 2 * count));
        store(weights + lane, load_stored(p.weight, place[i].weight, count));
        for (int axis = 0; axis < 2; ++axis) store(bases[axis] + lane, place[i].base[axis] + Vector<T>{});
      }
      const int64_t all = first_lane(places);
      for (int axis = 0; axis < 2; ++axis) base[axis] = load(bases[axis]);
      pairs[0] = load_some(offsets, 2 * all), pairs[1] = load_some(offsets + lanes, 2 * all - lanes);
      factor = load_some(weights, all);
    } else {
      const int64_t at = place->offset + 2 * first;
      pairs[0] = load_stored(p.offset, at, 2 * count);
      pairs[1] = load_stored(p.offset, at + lanes, 2 * count - lanes);
      factor = load_stored(p.weight, place->weight + first, count);
    }
    Vector<T> field[2], point[2], extent[2];
    Vector<Index> size[2];
    split_pairs<T>(pairs[0], pairs[1], field[1], field[0]);
    for (int axis = 0; axis < 2; ++axis) {
      point[axis] = sample_coordinate<Vector<T>>(base[axis], load(p.table.tap[axis] + first), field[axis],
                                                 load(p.table.scale[axis] + first));
      extent[axis] = load(p.table.extent[axis] + first);
      size[axis] = load(p.table.size[axis] + first);
    }
    at = corners_at<Vector<T>, Vector<Index>, 2, VecTraitsOf<Vector<T>>>(point, extent, size);
    const Vector<Index> start = load(p.table.start + first);
    for (int corner = 0; corner < kCorners; ++corner) at.index[corner] += start;
    stored = store_corners<Vector<T>, Vector<Index>, 2>(at, factor);
  }

  // The lane of the first of the `count` points at place i of the vector
  DCNZOO_INLINE int64_t first_lane(int64_t i) const { return i * count; }

  DCNZOO_INLINE Points points() const {
    Points result;
    store(result.rest, stored.rest);
    for (int corner = 0; corner < kCorners; ++corner) {
      const Vector<T> share = corner_weight<Vector<T>, 2>(corner, at.fraction);
      store(result.index[corner], stored.index[corner]);
      store(result.weight[corner], at.valid[corner] * share * stored.factor);
    }
    return result;
  }

  // Stores the gradients of the fields. dots: the sums over channels of gradient · pixel, [corner][kRows].
  template <typename S>
  DCNZOO_INLINE void store_gradients(const DeformAttnCpu<T, S>& p, const T* dots) const {
    using On = VecTraitsOf<Vector<T>>;
    Vector<T> slope[2] = {}, value{}, outside{};
    for (int corner = 0; corner < kCorners; ++corner) {
      Vector<T> dot = sum_rows<T>(dots + corner * kRows<T>);
      if (corner == 0) outside = dot;
      dot = On::blend(at.valid[corner] != Vector<T>{}, dot, Vector<T>{});
      for (int axis = 0; axis < 2; ++axis)
        slope[axis] += corner_slope<Vector<T>, 2>(corner, axis, at.fraction) * dot;
      value += corner_weight<Vector<T>, 2>(corner, at.fraction) * dot;
    }
    for (int axis = 0; axis < 2; ++axis) {
      slope[axis] *= factor * load(p.table.scale[axis] + first);
      slope[axis] = On::blend(at.inside, slope[axis], Vector<T>{});
    }
    T offset[3 * lanes] = {}, weight[2 * lanes] = {};  // the last vector of each is padding
    Vector<T> low, high;
    join_pairs<T>(slope[1], slope[0], low, high);
    store(offset, low), store(offset + lanes, high);
    store(weight, On::blend(at.inside, value, outside));
    for (int64_t i = 0; i < places; ++i) {
      const int64_t lane = first_lane(i), to = place[i].offset + 2 * first;
      store_stored(p.grad_offset, to, load(offset + 2 * lane), 2 * count);
      if (2 * count > lanes)
        store_stored(p.grad_offset, to + lanes, load(offset + 2 * lane + lanes), 2 * count - lanes);
      store_stored(p.grad_weight, place[i].weight + first, load(weight + lane), count);
    }
  }
};

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
