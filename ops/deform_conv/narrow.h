// Products of narrow groups: depthwise convolutions, with any number of outputs for each channel, and groups of a few
// channels. The lanes of a vector hold the columns of several groups. Each output of a group has a vector of sums,
// whose lanes are added at the end.
//
// NarrowWeights is the layout of a block's packed weight. It has the type of the sums: each row reads all of it, and
// would convert it again.
#pragma once

#include "tile_memory.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The packed weight of a block
template <typename T, typename S>
T* narrow_weight(S* packed, const ChannelBlock& block) {
  return reinterpret_cast<T*>(packed + block.weight_at);
}

// Calls function(packed, output, channel, tap) for each weight of a block. packed: its index in the block's packed
// weight; output: -1 if the lane or the output does not exist; channel: counted within the group.
template <typename T, typename Function>
void each_narrow_weight(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                        Function function) {
  constexpr int64_t lanes = kLanes<T>;
  const NarrowWeights layout = block.narrow_weights(s.taps);
  const int64_t vectors = block.width / lanes, all = vectors * layout.parts, outputs = s.group_outputs();
  for (int64_t i = piece.begin_of(all); i < piece.end_of(all); ++i)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t first = i % vectors * lanes, group = (first + lane) / block.lanes;
      const int64_t channel = (first + lane) % block.lanes;
      for (int64_t o = 0; o < block.lanes; ++o) {
        const int64_t output = i / vectors * block.lanes + o;
        const bool exists = group < block.groups && channel < s.group_channels() && output < outputs;
        for (int64_t tap = 0; tap < s.taps; ++tap)
          function(layout.place(tap, first, output, lanes) + lane,
                   exists ? block.first_output + group * outputs + output : -1, channel, tap);
      }
    }
}

template <typename T, typename S>
void pack_narrow(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                 const WeightOf<const S>& weight, S* packed) {
  T* const to = narrow_weight<T>(packed, block);
  each_narrow_weight<T>(s, block, piece, [=](int64_t at, int64_t output, int64_t channel, int64_t tap) {
    to[at] = output < 0 ? T(0) : load_lanes<T>(weight.at(output, channel, tap));
  });
}

// Returns x[I] + x[I ^ bit] in lane I. x is a where the bit `bit` of I is 0, else b.
template <int bit, typename V, int... I>
DCNZOO_INLINE V add_neighbours(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return shuffle<(I + (I & bit ? lanes : 0))...>(a, b) +
         shuffle<((I ^ bit) + (I & bit ? lanes : 0))...>(a, b);
}

// Adds the lanes of each group: lane i of a group of the result is the group's sum in vector i.
template <typename T, int group, int bit = 1>
DCNZOO_INLINE Vector<T> add_lanes(Vector<T>* sums) {
  if constexpr (bit == group) {
    return sums[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < group / bit / 2; ++i)
      sums[i] =
          add_neighbours<bit>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, kLanes<T>>());
    return add_lanes<T, group, 2 * bit>(sums);
  }
}

// The product of a block's columns and its packed weight, and the bias
template <typename T>
struct NarrowProduct {
  static constexpr int lanes = kLanes<T>, most_sums = 8;  // sums that the registers hold
  NarrowWeights layout;                                   // of the weight
  int64_t vectors;                                        // of the columns of a tap
  const T* weight;
  const T* bias;  // [part][width]
  T* result;      // [row][part][width], rows result_stride apart
  int64_t result_stride;

  template <typename S, int Rank>
  NarrowProduct(const ForwardParams<T, S>& p, const ChannelBlock& block,
                const ForwardMemory<T, S, Rank>& tile)
      : layout(block.narrow_weights(p.shape.taps)),
        vectors(block.width / lanes),
        weight(narrow_weight<const T>(p.weight, block)),
        bias(tile.bias),
        result(tile.result),
        result_stride(p.tile.outputs) {
    for (int64_t lane = 0; lane < block.result_row(); ++lane) {
      const int64_t output = block.output_lanes(lane / block.width).channel_of(lane % block.width);
      tile.bias[lane] = p.bias && output >= 0 ? p.bias[block.first_output + output] : 0;
    }
  }

  // Computes rows [begin, end). Columns: SampledColumns or NarrowColumns. Not inlined: with the walk around it, the
  // compiler would run out of registers.
  template <int size = 1, typename Columns>
  __attribute__((noinline)) void multiply(const Columns& columns, int64_t begin, int64_t end) const {
    if (layout.lanes == size) {
      constexpr int count = size < most_sums ? most_sums / size : 1;
      for (int64_t part = 0; part < layout.parts; ++part)
        multiply_part<size, count>(columns, begin, end, part, 0);
    } else if constexpr (2 * size <= Columns::most_lanes) {
      multiply<2 * size>(columns, begin, end);
    }
  }

 private:
  // The vectors of a part from `first` on, `count` at a time and then fewer
  template <int size, int count, typename Columns>
  void multiply_part(const Columns& columns, int64_t begin, int64_t end, int64_t part, int64_t first) const {
    for (; first + count <= vectors; first += count)
      multiply_vectors<size, count>(columns, begin, end, part, first);
    if constexpr (count > 1) multiply_part<size, count / 2>(columns, begin, end, part, first);
  }

  template <int size, int count, typename Columns>
  void multiply_vectors(const Columns& all, int64_t begin, int64_t end, int64_t part, int64_t first) const {
    const NarrowProduct p = *this;  // local copies: the compiler would read members again after every store
    const Columns columns = all.from(first * lanes);
    const int64_t tap_size = p.layout.tap_stride(), to = (part * p.vectors + first) * lanes;
    const T* const weights = p.weight + p.layout.place(0, first * lanes, part * size, lanes);
    for (int64_t r = begin; r < end; ++r) {
      Vector<T> sums[count][size] = {};
      for (int64_t tap = 0; tap < p.layout.taps; ++tap) {
        const auto point = columns.at(tap, r);
        const T* const right = weights + tap * tap_size;
#pragma GCC unroll 8
        for (int v = 0; v < count; ++v) {
          const auto column = point.template read<Vector<T>>(v * lanes);
#pragma GCC unroll 16
          for (int o = 0; o < size; ++o) sums[v][o] += column * load(right + (v * size + o) * lanes);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v)
        store(p.result + r * p.result_stride + to + v * lanes,
              add_lanes<T, size>(sums[v]) + load(p.bias + to + v * lanes));
    }
  }
};

// The products of the backward. They take a run of rows at a time, whose gradients of the outputs the L1 cache holds.
template <typename T, typename S>
struct NarrowGradient {
  static constexpr int lanes = kLanes<T>, run = 32;
  NarrowWeights layout;   // of the weight and its gradient
  int64_t rows, outputs;  // outputs: of a group
  int64_t groups;         // padded to whole vectors
  const S* gradient;      // of the outputs: [row][output][group]

  template <int Rank>
  NarrowGradient(const BackwardParams<T, S>& p, const ChannelBlock& block,
                 const BackwardMemory<T, S, Rank>& tile)
      : layout(block.narrow_weights(p.shape.taps)),
        rows(tile.rows.count),
        outputs(p.shape.group_outputs()),
        groups(block.padded_groups()),
        gradient(tile.gradient) {}

  // The gradients of the outputs for the vector of columns `column` in `count` rows: [row][output][lane], where all
  // lanes of a group have the same value
  template <int... lane>
  void fill_lanes(int64_t first, int64_t count, int64_t column, T* to,
                  std::integer_sequence<int, lane...> all) const {
    fill_lanes_of<1>(gradient + first * outputs * groups + column / layout.lanes, count * outputs, to, all);
  }
  template <int size, int... lane>
  void fill_lanes_of(const S* from, int64_t count, T* to, std::integer_sequence<int, lane...> all) const {
    if (layout.lanes == size) {
      for (int64_t i = 0; i < count; ++i, from += groups) {
        const auto values = load_lanes<Vector<T>>(from);
        store(to + i * lanes, shuffle<(lane / size)...>(values, values));
      }
    } else if constexpr (2 * size <= lanes) {
      fill_lanes_of<2 * size>(from, count, to, all);
    }
  }
  // Calls function(columns, gradient, weight, rows) for each vector of columns in a run of rows. The pointers to
  // gradient and weight are those of output 0.
  template <typename E, typename Weight, typename Function>
  DCNZOO_INLINE void each_vector(const Panels<E>& columns, Weight* weight, Function function) const {
    alignas(kVectorBytes) T filled[run * lanes * lanes];
    for (int64_t c = 0; c < layout.width; c += lanes)
      for (int64_t first = 0; first < rows; first += run) {
        const int64_t count = rows - first < run ? rows - first : run;
        fill_lanes(first, count, c, filled, std::make_integer_sequence<int, lanes>());
        for (int64_t tap = 0; tap < layout.taps; ++tap)
          function(columns.at(first, tap * layout.width + c), filled, weight + layout.place(tap, c, 0, lanes),
                   count);
      }
  }
  // The distance between the weights of output 0 and of this output
  DCNZOO_INLINE int64_t weight_of(int64_t output) const { return layout.place(0, 0, output, lanes); }
  // Calls function(count, output) for all outputs, in steps of `count`, which is a constant.
  template <int count = 8, typename Function>
  DCNZOO_INLINE void each_outputs(const Function& function, int64_t output = 0) const {
    for (; output + count <= outputs; output += count) function(std::integral_constant<int, count>{}, output);
    if constexpr (count > 1) each_outputs<count / 2>(function, output);
  }

  // The columns' gradient
  void multiply_by_weight(const T* weight, const Panels<T>& columns) const {
    const NarrowGradient p = *this;  // a local copy: the compiler would read members again after every store
    p.each_vector(columns, weight, [&](T* column, const T* from, const T* right, int64_t count) {
      p.each_outputs([&](auto together, int64_t output) {
        Vector<T> by[together];
        for (int i = 0; i < together; ++i) by[i] = load(right + p.weight_of(output + i));
        for (int64_t r = 0; r < count; ++r) {
          const T* const g = from + (r * p.outputs + output) * lanes;
          Vector<T> sum = load(g) * by[0];
          for (int i = 1; i < together; ++i) sum += load(g + i * lanes) * by[i];
          store(column + r * kNR<T>, output ? load(column + r * kNR<T>) + sum : sum);
        }
      });
    });
  }

  // Adds to the weight's gradient.
  void multiply_by_columns(const Panels<S>& columns, T* grad_weight) const {
    const NarrowGradient p = *this;
    p.each_vector(columns, grad_weight, [&](const S* column, const T* from, T* to, int64_t count) {
      p.each_outputs([&](auto together, int64_t output) {
        constexpr int apart = 8 / together;  // rows with sums of their own
        Vector<T> sums[apart][together] = {};
        const auto add = [&](int64_t r, Vector<T>(&sum)[together]) {
          const auto left = load_lanes<Vector<T>>(column + r * kNR<S>);
          const T* const g = from + (r * p.outputs + output) * lanes;
          for (int i = 0; i < together; ++i) sum[i] += left * load(g + i * lanes);
        };
        int64_t r = 0;
        for (; r + apart <= count; r += apart)
          for (int i = 0; i < apart; ++i) add(r + i, sums[i]);
        for (; r < count; ++r) add(r, sums[0]);
        for (int i = 0; i < together; ++i) {
          for (int j = 1; j < apart; ++j) sums[0][i] += sums[j][i];
          T* const at = to + p.weight_of(output + i);
          store(at, load(at) + sums[0][i]);
        }
      });
    });
  }
};

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
