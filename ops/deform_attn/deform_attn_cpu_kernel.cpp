// For each query and group, the corners and weights of all points are computed first, vectorised over points (of several
// queries and groups if a vector has room). Then the points are sampled one by one, vectorised over channels, which are
// contiguous in memory.
#include "deform_attn_cpu_kernel.h"

#include "../common/integers.h"
#include "../common/corners_simd.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

constexpr int kCorners = 4;

// A vector of points, one point per lane.
template <typename T>
struct Chunk {
  using Index = typename SampleTable<T>::Index;
  Corners<Vector<T>, Vector<Index>, 2> at;  // index: includes the map's start
  StoredCorners<Vector<T>, Vector<Index>, 2> stored;
  Vector<T> factor;

  // The weight of a corner's pixel in the result, without `rest`. Zero outside the map.
  DCNZOO_INLINE Vector<T> weight(int corner) const {
    return at.valid[corner] * corner_weight<Vector<T>, 2>(corner, at.fraction) * stored.factor;
  }
};

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

// Computes a chunk: the points of one place from `first` on, or all points of several places.
template <typename T, typename S>
DCNZOO_INLINE Chunk<T> plan(const DeformAttnCpu<T, S>& p, const Place<T>* place, int64_t places,
                            int64_t first) {
  using Index = typename SampleTable<T>::Index;
  constexpr int64_t lanes = kLanes<T>;
  int64_t count = p.points - first;
  Vector<T> base[2] = {place->base[0] + Vector<T>{}, place->base[1] + Vector<T>{}};
  Vector<T> pairs[2], weight;
  if (places > 1) {
    // The fields of all places, one after another. Each store writes a whole vector; the next one overwrites its unused
    // lanes.
    T offsets[3 * lanes], weights[2 * lanes], bases[2][2 * lanes];
    for (int64_t i = 0; i < places; ++i) {
      store(offsets + i * 2 * count, load_stored(p.offset, place[i].offset, 2 * count));
      store(weights + i * count, load_stored(p.weight, place[i].weight, count));
      for (int axis = 0; axis < 2; ++axis) store(bases[axis] + i * count, place[i].base[axis] + Vector<T>{});
    }
    count *= places;
    for (int axis = 0; axis < 2; ++axis) base[axis] = load(bases[axis]);
    pairs[0] = load_some(offsets, 2 * count), pairs[1] = load_some(offsets + lanes, 2 * count - lanes);
    weight = load_some(weights, count);
  } else {
    const int64_t at = place->offset + 2 * first;
    pairs[0] = load_stored(p.offset, at, 2 * count),
    pairs[1] = load_stored(p.offset, at + lanes, 2 * count - lanes);
    weight = load_stored(p.weight, place->weight + first, count);
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
  Chunk<T> chunk;
  chunk.at = corners_at<Vector<T>, Vector<Index>, 2, VecTraitsOf<Vector<T>>>(point, extent, size);
  const Vector<Index> start = load(p.table.start + first);
  for (int corner = 0; corner < kCorners; ++corner) chunk.at.index[corner] += start;
  chunk.factor = weight;
  chunk.stored = store_corners<Vector<T>, Vector<Index>, 2>(chunk.at, chunk.factor);
  return chunk;
}

// 0, or NaN in lanes that are not finite
template <typename Value>
DCNZOO_INLINE Value not_finite(Value value) {
  return value - value;
}
DCNZOO_INLINE Vector<float> not_finite(const EvenOdd& value) {
  return (value.even - value.even) + (value.odd - value.odd);
}

// Stores the sums of two vectors of bfloat16 in the order of the channels.
DCNZOO_INLINE void store_sums(uint16_t* to, const EvenOdd& value) {
  Vector<float> low, high;
  join_pairs<float>(value.even, value.odd, low, high);
  store_lanes(to, low), store_lanes(to + kLanes<float>, high);
}
template <typename S, typename Value>
DCNZOO_INLINE void store_sums(S* to, Value value) {
  store_lanes(to, value);
}

// Sums V values over a query's points; a value is a vector of channels or a pair of vectors. Rest: V is 1, and the vector
// has only `rest` lanes. check becomes NaN if a sum is not finite.
template <typename T, typename S, typename Value, int V, bool Rest>
DCNZOO_INLINE void sum_points(const typename SampleTable<T>::Index* index, const T* weight, int64_t padded,
                              int64_t points, const S* map, int64_t pixel_stride, int64_t rest, S* output,
                              Vector<T>& check) {
  constexpr int channels = sizeof(Value) / sizeof(T);
  const auto read = [=](const S* from) -> Value {
    if constexpr (Rest)
      return load_some(from, rest);
    else
      return load_lanes<Value>(from);
  };
  Value sum[2][V] = {};  // two accumulators each, to shorten the dependency chain
  for (int64_t point = 0; point < points; ++point) {
    if (index[point] < 0) continue;
    const S* from[kCorners];
    T share[kCorners];
    for (int corner = 0; corner < kCorners; ++corner) {
      from[corner] = map + int64_t(index[corner * padded + point]) * pixel_stride;
      share[corner] = weight[corner * padded + point];
    }
    for (int v = 0; v < V; ++v)
      for (int corner = 0; corner < kCorners; ++corner)
        sum[corner / 2][v] += share[corner] * read(from[corner] + v * channels);
  }
  for (int v = 0; v < V; ++v) {
    sum[0][v] += sum[1][v];
    check += not_finite(sum[0][v]);
    if constexpr (!Rest) {
      store_sums(output + v * channels, sum[0][v]);
    } else {
      store_some(output, sum[0][v], rest);
    }
  }
}

// A chunk's points in memory.
template <typename T>
struct ChunkPoints {
  typename SampleTable<T>::Index index[kCorners][kLanes<T>];  // as in StoredCorners
  T weight[kCorners][kLanes<T>], rest[kLanes<T>];

  DCNZOO_INLINE explicit ChunkPoints(const Chunk<T>& chunk) {
    store(rest, chunk.stored.rest);
    for (int corner = 0; corner < kCorners; ++corner) {
      store(index[corner], chunk.stored.index[corner]);
      store(weight[corner], chunk.weight(corner));
    }
  }
};

// Recomputes a place's output by the plain formula if a sum is not finite: corners outside the map are not read, and the
// factor multiplies the interpolated value.
template <typename T, typename S>
__attribute__((noinline)) void sum_exactly(const DeformAttnCpu<T, S>& p, const Place<T>& place) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t pixel_stride = p.groups * p.channels;
  const S* const map = p.input + place.map(p);
  S* const output = p.output + place.output(p);
  bool finite = true;
  for (int64_t c = 0; c < p.channels; ++c) finite &= from_stored(output[c]) - from_stored(output[c]) == T(0);
  if (finite) return;  // the Inf or NaN is in another place: leave this one unchanged
  for (int64_t begin = 0; begin < p.channels; begin += lanes) {
    const int64_t channels = p.channels - begin < lanes ? p.channels - begin : lanes;
    T sums[lanes] = {};
    for (int64_t first = 0; first < p.points; first += lanes) {
      const ChunkPoints<T> points(plan(p, &place, 1, first));
      for (int64_t point = 0; point < lanes && first + point < p.points; ++point) {
        const InsideCorners<kCorners> inside([&](int c) { return points.index[c][point]; });
        for (int64_t c = 0; c < channels; ++c) {
          T value = 0;
          for (int i = 0; i < inside.count; ++i)
            value += points.weight[inside.corner[i]][point] *
                     from_stored(map[inside.index[i] * pixel_stride + begin + c]);
          sums[c] += value * points.rest[point];
        }
      }
    }
    store_row(sums, output + begin, channels);
  }
}

template <typename T, typename S>
void forward(const DeformAttnCpu<T, S>& p, int64_t image, int64_t begin, int64_t end, T* scratch) {
  using Index = typename SampleTable<T>::Index;
  // the type that is sampled at once: two vectors of bfloat16 are converted together
  using Pair = std::conditional_t<std::is_same_v<S, T>, Vector<T>, EvenOdd>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t padded = round_up(p.points, kMostLanes), pixel_stride = p.groups * p.channels;
  const int64_t full = p.channels / lanes, rest = p.channels % lanes, most = places_of_chunk<T>(p);
  T* const weight = scratch;
  Index* const index = reinterpret_cast<Index*>(scratch + kCorners * padded);
  Place<T> place[lanes];
  for (int64_t query = begin, group = 0; query < end;) {
    int64_t places = 0;
    for (; places < most && query < end; group = group + 1 < p.groups ? group + 1 : 0, query += group == 0)
      place[places++] = Place<T>(p, image, query, group);
    for (int64_t first = 0; first < p.points; first += lanes) {
      const Chunk<T> chunk = plan(p, place, places, first);
      // A corner outside the map has weight zero and the index of a pixel inside. If that pixel is Inf or NaN, the
      // sum wrongly becomes NaN and is recomputed below. Points outside are skipped if their factor is finite.
      const Vector<T> zero{};
      const auto counts = chunk.at.inside | (chunk.factor - chunk.factor != zero);
      for (int corner = 0; corner < kCorners; ++corner) {
        const Vector<T> share = corner_weight<Vector<T>, 2>(corner, chunk.at.fraction);
        store(weight + corner * padded + first, chunk.at.valid[corner] * share * chunk.factor);
        const auto place_of = chunk.at.index[corner];
        const auto first_place =
            VecTraitsOf<Vector<T>>::blend(counts, chunk.at.index[0], Vector<Index>{} - 1);
        store(index + corner * padded + first, corner ? place_of : first_place);
      }
    }
    Vector<T> check{};
    for (int64_t i = 0; i < places; ++i) {
      const S* map = p.input + place[i].map(p);
      S* output = p.output + place[i].output(p);
      const auto sum = [&](auto value, auto count, auto partial) {
        using Value = decltype(value);
        constexpr int64_t channels = count * int64_t(sizeof(Value) / sizeof(T));
        sum_points<T, S, Value, count(), partial()>(index + i * p.points, weight + i * p.points, padded,
                                                    p.points, map, pixel_stride, rest, output, check);
        map += channels, output += channels;
      };
      using std::false_type, std::integral_constant;
      constexpr int pair = sizeof(Pair) / sizeof(Vector<T>);
      int64_t vectors = full;
      for (; vectors >= 4; vectors -= 4) sum(Pair{}, integral_constant<int, 4 / pair>{}, false_type{});
      if (vectors & 2) sum(Pair{}, integral_constant<int, 2 / pair>{}, false_type{});
      if (vectors & 1) sum(Vector<T>{}, integral_constant<int, 1>{}, false_type{});
      if (rest) sum(Vector<T>{}, integral_constant<int, 1>{}, std::true_type{});
    }
    if (all_zero<T>(check)) continue;
    for (int64_t i = 0; i < places; ++i) sum_exactly(p, place[i]);
  }
}

// Copies channels and pads them with zeros to a whole vector.
template <typename T, typename S>
DCNZOO_INLINE void copy_padded(const S* from, T* to, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) store(to + c, load_some(from + c, channels - c));
}

template <typename T, typename S>
DCNZOO_INLINE void copy_back(const T* from, S* to, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) store_some(to + c, load(from + c), channels - c);
}

// `value` has a group's channels of an image, `sum` the sums of their gradient. Pixels are `stride` apart.
//
// Both usually lie in a copy, [pixel][value, gradient][channels, padded], which lacks one that is not needed. At the stride
// of all groups, the channels would fall into few cache sets. Value and gradient are interleaved: with two separate maps,
// a load from one could wait for a store to the other whose address has the same last 12 bits. With few samples, copying
// would take longer than sampling: `value` and `sum` then point into the input and into its gradient, zero at first.
template <typename T, typename S, bool Input, bool Fields>
struct Slice {
  static constexpr int64_t kAhead = 16;  // pixels; the hardware does not prefetch at the stride of all groups
  const T* value;
  T* sum;
  int64_t stride, channels, padded;

  Slice(const DeformAttnCpu<T, S>& p, int64_t begin, T* memory)
      : value(memory), channels(p.channels), padded(round_up(p.channels, kLanes<T>)) {
    sum = memory + Fields * padded, stride = (Input + Fields) * padded;
    if constexpr (std::is_same_v<S, T>)
      if (p.in_place) {
        value = p.input + begin, sum = Input ? p.grad_input + begin : nullptr;
        stride = p.groups * p.channels;
      }
  }

  void load(const S* input, int64_t pixel_stride, int64_t pixels, T* to) const {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, input += pixel_stride, to += stride) {
      if (Fields) {
        __builtin_prefetch(input + kAhead * pixel_stride);
        copy_padded(input, to, channels);
      }
      if (Input)
        for (int64_t c = 0; c < padded; c += kLanes<T>) store(to + Fields * padded + c, Vector<T>{});
    }
  }

  void store_gradient(S* grad_input, int64_t pixel_stride, int64_t pixels) const {
    const T* from = sum;
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += stride, grad_input += pixel_stride) {
      __builtin_prefetch(grad_input + kAhead * pixel_stride, 1);
      copy_back(from, grad_input, channels);
    }
  }
};

// The number of products of one corner, [point of the chunk][kLanes], which sum_rows reduces.
template <typename T>
constexpr int64_t kRows = kLanes<T> * kLanes<T>;

// The backward of points [begin, end) of a chunk. Adds to the gradient of their pixels and writes to `dots`, per corner,
// the sum over channels of gradient · pixel, from which FieldGradients computes the gradients of the fields.
// V: vectors of channels, 0 if not known at compile time.
template <typename T, typename S, int V, bool Input, bool Fields>
DCNZOO_INLINE void backward_points(const ChunkPoints<T>& points, int64_t begin, int64_t end,
                                   const T* gradient, const Slice<T, S, Input, Fields>& slice, T* dots) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t all = V ? V : slice.padded / lanes;
  for (int64_t point = begin; point < end; ++point) {
    Vector<T> dot[kCorners] = {};
    if (points.index[0][point] >= 0) {
      int64_t pixel[kCorners];
      for (int corner = 0; corner < kCorners; ++corner)
        pixel[corner] = points.index[corner][point] * slice.stride;
      for (int64_t v = 0; v < all; ++v) {
        const Vector<T> grad = load(gradient + v * lanes);
        for (int corner = 0; corner < kCorners; ++corner) {
          const int64_t at = pixel[corner] + v * lanes;
          if (Fields) dot[corner] += grad * load(slice.value + at);
          if (Input) store(slice.sum + at, load(slice.sum + at) + points.weight[corner][point] * grad);
        }
      }
    } else {
      const InsideCorners<kCorners> inside([&](int c) { return points.index[c][point]; });
      for (int64_t v = 0; v < all; ++v) {
        const Vector<T> grad = load(gradient + v * lanes);
        for (int i = 0; i < inside.count; ++i) {
          const int corner = inside.corner[i];
          const int64_t at = inside.index[i] * slice.stride + v * lanes;
          if (Fields) dot[corner] += grad * load(slice.value + at);
          if (Input)
            store(slice.sum + at,
                  load(slice.sum + at) + points.weight[corner][point] * (grad * points.rest[point]));
        }
        // the sampled value is zero: the factor's gradient is gradient · 0, which is NaN for Inf
        if (Fields && inside.count == 0) dot[0] += grad * T(0);
      }
    }
    if (Fields)
      for (int corner = 0; corner < kCorners; ++corner)
        store(dots + corner * kRows<T> + point * lanes, dot[corner]);
  }
}

// The gradients of a chunk's fields.
template <typename T, typename S>
struct FieldGradients {
  T offset[3 * kLanes<T>] = {}, weight[2 * kLanes<T>] = {};  // the last vector of each is padding

  DCNZOO_INLINE FieldGradients(const DeformAttnCpu<T, S>& p, const Chunk<T>& chunk, const T* dots,
                               int64_t first) {
    using On = VecTraitsOf<Vector<T>>;
    Vector<T> slope[2] = {}, value{}, outside{};
    for (int corner = 0; corner < kCorners; ++corner) {
      Vector<T> dot = sum_rows<T>(dots + corner * kRows<T>);
      if (corner == 0) outside = dot;
      dot = On::blend(chunk.at.valid[corner] != Vector<T>{}, dot, Vector<T>{});
      for (int axis = 0; axis < 2; ++axis)
        slope[axis] += corner_slope<Vector<T>, 2>(corner, axis, chunk.at.fraction) * dot;
      value += corner_weight<Vector<T>, 2>(corner, chunk.at.fraction) * dot;
    }
    for (int axis = 0; axis < 2; ++axis) {
      slope[axis] *= chunk.factor * load(p.table.scale[axis] + first);
      slope[axis] = On::blend(chunk.at.inside, slope[axis], Vector<T>{});
    }
    Vector<T> low, high;
    join_pairs<T>(slope[1], slope[0], low, high);
    store(offset, low), store(offset + kLanes<T>, high);
    store(weight, On::blend(chunk.at.inside, value, outside));
  }

  // Stores the gradients of `count` points, which begin at lane `lane`, as those of a place's points from `first` on.
  DCNZOO_INLINE void store_to(const DeformAttnCpu<T, S>& p, const Place<T>& place, int64_t lane,
                              int64_t count, int64_t first) const {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t at = place.offset + 2 * first;
    store_stored(p.grad_offset, at, load(offset + 2 * lane), 2 * count);
    if (2 * count > lanes)
      store_stored(p.grad_offset, at + lanes, load(offset + 2 * lane + lanes), 2 * count - lanes);
    store_stored(p.grad_weight, place.weight + first, load(weight + lane), count);
  }
};

// Prefetches the fields that are read `queries` queries later: they are too far away for the hardware prefetcher.
template <typename T, typename S, bool Fields>
DCNZOO_INLINE void prefetch_later(const DeformAttnCpu<T, S>& p, const Place<T>& place, int64_t queries) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t offset = place.offset + queries * p.offset_at.query;
  const int64_t weight = place.weight + queries * p.weight_at.query;
  for (int64_t i = 0; i < 2 * p.points + line; i += line) {
    __builtin_prefetch(address(p.offset, offset + i));
    if (Fields) __builtin_prefetch(address(p.grad_offset, offset + i), 1);
  }
  for (int64_t i = 0; i < p.points + line; i += line) {
    __builtin_prefetch(address(p.weight, weight + i));
    if (Fields) __builtin_prefetch(address(p.grad_weight, weight + i), 1);
  }
  __builtin_prefetch(p.grad_output + place.output(p) + queries * p.groups * p.channels);
}

template <typename T, typename S, int V, bool Input, bool Fields>
void backward_of(const DeformAttnCpu<T, S>& p, int64_t image, int64_t group, T* scratch) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t padded = round_up(p.channels, lanes), pixel_stride = p.groups * p.channels;
  const int64_t begin = Place<T>(p, image, 0, group).map(p), most = places_of_chunk<T>(p);
  T* const gradient = scratch;
  const Slice<T, S, Input, Fields> slice(p, begin, scratch + padded);
  T dots[Fields ? kCorners * kRows<T> : 1];
  Place<T> place[lanes];
  if (!p.in_place) slice.load(p.input + begin, pixel_stride, p.pixels, scratch + padded);
  for (int64_t query = 0; query < p.queries; query += most) {
    const int64_t queries = p.queries - query < most ? p.queries - query : most;
    for (int64_t i = 0; i < queries; ++i) place[i] = Place<T>(p, image, query + i, group);
    for (int64_t first = 0; first < p.points; first += lanes) {
      const Chunk<T> chunk = plan(p, place, queries, first);
      const ChunkPoints<T> points(chunk);
      const int64_t count = p.points - first < lanes ? p.points - first : lanes;  // of a query
      for (int64_t i = 0; i < queries; ++i) {
        if (first == 0) prefetch_later<T, S, Fields>(p, place[i], most);
        copy_padded(p.grad_output + place[i].output(p), gradient, p.channels);
        backward_points<T, S, V, Input, Fields>(points, i * count, (i + 1) * count, gradient, slice, dots);
      }
      if (!Fields) continue;
      const FieldGradients<T, S> gradients(p, chunk, dots, first);
      for (int64_t i = 0; i < queries; ++i) gradients.store_to(p, place[i], i * count, count, first);
    }
  }
  if (Input && !p.in_place) slice.store_gradient(p.grad_input + begin, pixel_stride, p.pixels);
}

template <typename T, typename S>
void backward(const DeformAttnCpu<T, S>& p, int64_t image, int64_t group, T* scratch) {
  const auto attend = [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    if (!p.grad_input)
      backward_of<T, S, V, false, true>(p, image, group, scratch);
    else if (address(p.grad_offset, 0) == nullptr)
      backward_of<T, S, V, true, false>(p, image, group, scratch);
    else
      backward_of<T, S, V, true, true>(p, image, group, scratch);
  };
  switch (round_up(p.channels, kLanes<T>) / kLanes<T>) {
    case 1: return attend(std::integral_constant<int, 1>{});
    case 2: return attend(std::integral_constant<int, 2>{});
    default: return attend(std::integral_constant<int, 0>{});
  }
}

}  // namespace

const StoredKernelTable<DeformAttnKernels>& deform_attn_kernels() {
  static const StoredKernelTable<DeformAttnKernels> kernels{
      {{forward<float, float>, backward<float, float>},
       DCNZOO_DOUBLE_KERNELS(deform_attn_kernels, {forward<double, double>, backward<double, double>})},
      {forward<float, BFloat16Bits>, backward<float, BFloat16Bits>}};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
