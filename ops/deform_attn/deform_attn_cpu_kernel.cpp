// For each query and group, the corners and weights of all points are computed first, vectorised over points (of several
// queries and groups if a vector has room). Then the points are sampled one by one, vectorised over channels, which are
// contiguous in memory.
#include "deform_attn_points.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

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
      const auto points = Chunk<T>(p, &place, 1, first).points();
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
      const Chunk<T> chunk(p, place, places, first);
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

// The backward of points [begin, end) of a chunk. Adds to the gradient of their pixels and writes to `dots`, per corner,
// the sum over channels of gradient · pixel, from which the chunk computes the gradients of the fields.
// V: vectors of channels, 0 if not known at compile time.
template <typename T, typename S, int V, bool Input, bool Fields>
DCNZOO_INLINE void backward_points(const typename Chunk<T>::Points& points, int64_t begin, int64_t end,
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
      const Chunk<T> chunk(p, place, queries, first);
      const auto points = chunk.points();
      for (int64_t i = 0; i < queries; ++i) {
        if (first == 0) prefetch_later<T, S, Fields>(p, place[i], most);
        copy_padded(p.grad_output + place[i].output(p), gradient, p.channels);
        backward_points<T, S, V, Input, Fields>(points, chunk.first_lane(i), chunk.first_lane(i + 1),
                                                gradient, slice, dots);
      }
      if (Fields) chunk.store_gradients(p, dots);
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
