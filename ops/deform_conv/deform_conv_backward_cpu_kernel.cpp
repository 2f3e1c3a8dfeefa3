// The backward of deformable convolution on the CPU, as described in ops/README.md.
//
// For a tile and a block of channels, it multiplies the output's gradient by the weight, which gives the columns'
// gradient, and then samples the input again. The second step computes the gradients of input, offset and mask, and
// replaces the columns' gradient by the columns in place, for the weight's gradient.
#include "../common/gemm.h"
#include "sampling_table.h"
#include "weight_packing.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S>
using Params = DeformConvBackwardParams<T, S>;

// bfloat16 is multiplied in pairs of rows of the right operand: see gemm.h.
template <typename T, typename S>
constexpr int64_t kPair = sizeof(T) / sizeof(S);

// The number of points for which sum_rows completes the dot products of gradient and pixels at once.
template <typename T, int Rank>
constexpr int64_t kTogether = kLanes<T> > kCorners<Rank> ? kLanes<T> / kCorners<Rank> : 1;

// The gradient of as many columns as a Value holds. With pixels of the type EvenOdd, it is needed in two orders: in memory
// order for the gradient of the input, and in the order of the pixels for their dot products.
template <typename T, typename Value>
struct ColumnGradient {
  using Part = std::conditional_t<std::is_same_v<Value, EvenOdd>, Vector<T>, Value>;
  Part parts[sizeof(Value) / sizeof(Part)];
  Value sorted;  // in the order of the pixels

  DCNZOO_INLINE explicit ColumnGradient(const T* from) {
    for (Part& part : parts) part = load_lanes<Part>(from), from += kLanes<T>;
    if constexpr (std::is_same_v<Value, Part>)
      sorted = parts[0];
    else
      split_pairs<T>(parts[0], parts[1], sorted.even, sorted.odd);
  }
  DCNZOO_INLINE void add_to(T* to, T factor, T rest = 1) const {
    for (const Part& part : parts)
      store_lanes(to, load_lanes<Part>(to) + factor * (part * rest)), to += kLanes<T>;
  }
};

// One tap of one output pixel, for the channels of a block. Input, Points and Columns: whether to compute the
// gradient of the input, the gradients of offset and mask, and the columns.
template <typename T, typename S, int Rank, bool Input, bool Points, bool Columns, typename Channels>
struct PointBackward {
  static constexpr int corners = kCorners<Rank>;
  static constexpr bool reads_input = Points || Columns;
  int64_t tap, row;
  Channels channels;
  int64_t stride;          // of the columns' panels
  T rest;                  // the mask if it is not finite, else 1
  const S* from[corners];  // the corners' pixels in the input
  T* to[corners];          // the same pixels in the input's gradient
  T modulated[corners];    // their weights, multiplied by the mask if it is finite

  // Adds to Σ over channels of gradient · pixel. `dot` is aligned, as Clang 14 assumes: `Value` loses Vector's attribute.
  template <typename Value>
  static DCNZOO_INLINE void add_dot(Vector<T>& dot, Value product) {
    if constexpr (std::is_same_v<Value, EvenOdd>)
      dot += product.even, dot += product.odd;
    else if constexpr (std::is_arithmetic_v<Value>)
      dot += Vector<T>{product};
    else if constexpr (sizeof(Value) < kVectorBytes)
      dot += widened<T>(product);
    else
      dot += product;
  }

  // Stores dots, whose lanes still have to be added, as [corner][point of kTogether][kLanes].
  static DCNZOO_INLINE void store_dots(const Vector<T> (&dot)[corners], T* to) {
    for (int i = 0; i < corners; ++i) store(to + i * kTogether<T, Rank> * kLanes<T>, dot[i]);
  }

  // Points corner i to the pixel at `place` in the input and its gradient.
  DCNZOO_INLINE void locate(const Params<T, S>& p, int i, int64_t place) {
    if (reads_input) from[i] = p.input.data + place;
    if (Input) to[i] = p.grad_input + place;
  }

  // For points whose corners are all in the map and whose mask is finite.
  DCNZOO_INLINE void add_whole(const T* gradients, S* columns, T* dots) {
    alignas(kVectorBytes) Vector<T> dot[corners] = {};
    each_column<T, Whole<S>>(tap, channels, row, stride, [&](auto value, int64_t c, int64_t at) {
      using Value = decltype(value);
      const ColumnGradient<T, Value> gradient(gradients + at);
      if (reads_input) {
        for (int corner = 0; corner < corners; ++corner) {
          const Value pixel = load_lanes<Value>(from[corner] + c);
          if (Columns) value += modulated[corner] * pixel;
          if (Points) add_dot<Value>(dot[corner], gradient.sorted * pixel);
        }
        if (Columns) store_lanes(columns + at, value);
      }
      if (Input)
        for (int corner = 0; corner < corners; ++corner) gradient.add_to(to[corner] + c, modulated[corner]);
    });
    if (Points) store_dots(dot, dots);
  }

  // For all other points: only the corners in the map, by the plain formula.
  DCNZOO_INLINE void add_partial(const InsideCorners<corners>& found, const T* gradients, S* columns,
                                 T* dots) {
    alignas(kVectorBytes) Vector<T> dot[corners] = {};
    each_column<T, Whole<S>>(tap, channels, row, stride, [&](auto value, int64_t c, int64_t at) {
      using Value = decltype(value);
      const ColumnGradient<T, Value> gradient(gradients + at);
      for (int i = 0; i < found.count; ++i) {
        if (Columns) value += modulated[i] * load_lanes<Value>(from[i] + c);
        if (Points) add_dot<Value>(dot[found.corner[i]], gradient.sorted * load_lanes<Value>(from[i] + c));
        if (Input) gradient.add_to(to[i] + c, modulated[i], rest);
      }
      if (Points && found.count == 0) add_dot<Value>(dot[0], gradient.sorted * T(0));
      if (Columns) store_lanes(columns + at, value * rest);
    });
    if (Points) store_dots(dot, dots);
  }
};

template <typename T, typename S, int Rank>
struct TileMemory {
  Rows<T, Rank> rows;
  BackwardPoints<T, Rank>* table;  // [tap]
  T* gradients;                    // of the columns, in panels of [row][kNR]
  S* columns;                      // in the same memory unless the type differs
  S* gradient;                     // [output of the group][row]
  S* pairs;                        // bfloat16: `gradient` as [row][output], rows pair_stride apart
  T* dots;                         // Σ over channels of gradient · pixel, [tap][corner][row]
  T* offset_mask;                  // gradients of offset and mask, [tap · (rank + 1)][row]

  TileMemory(Arena& arena, const Params<T, S>& p)
      : rows(Rows<T, Rank>::allocate(arena, kBackwardRows)),
        table(arena.take<BackwardPoints<T, Rank>>(p.shape.taps)),
        gradients(arena.take<T>(columns_size<T>(p.tile))),
        columns(kPair<T, S> == 1 ? reinterpret_cast<S*>(gradients) : arena.take<S>(columns_size<S>(p.tile))),
        gradient(arena.take<S>(p.tile.outputs * kBackwardRows)),
        pairs(arena.take<S>(kPair<T, S> == 1 ? 0 : pair_stride(p) * kBackwardRows)),
        dots(arena.take<T>(p.shape.taps * kCorners<Rank> * kBackwardRows)),
        offset_mask(arena.take<T>(p.shape.taps * (Rank + 1) * kBackwardRows)) {}

  // The padding keeps rows out of the same L1 cache set.
  static int64_t pair_stride(const Params<T, S>& p) { return p.tile.outputs + kNR<S>; }
};

// Computes the columns (if they are needed) from their gradient, adds to the input's gradient and writes `dots`.
template <typename T, typename S, int Rank, bool Input, bool Points, bool Columns>
void sample_backward(const Params<T, S>& p, const ChannelBlock& block, const TileMemory<T, S, Rank>& tile) {
  constexpr int corners = kCorners<Rank>;
  const int64_t stride = panel_stride<T>(p.tile);
  const Rows<T, Rank>& rows = tile.rows;
  // Computes at once a row's taps or, for bfloat16, a tap's rows: their gradients and columns are neighbours in memory.
  constexpr bool by_rows = kPair<T, S> > 1;
  constexpr int64_t lanes = kLanes<T>, together = kTogether<T, Rank>;
  constexpr int64_t row_step = by_rows ? together : 1, tap_step = together / row_step;
  T dots[together * corners * lanes] = {}, sums[lanes];
  const CornerDistances<Rank> distance(p.shape, p.input.channels);
  const auto differentiate = [&](auto channels, int64_t r, int64_t tap, T* point_dots) {
    PointBackward<T, S, Rank, Input, Points, Columns, decltype(channels)> point;
    const BackwardPoints<T, Rank>& points = tile.table[tap];
    const T factor = points.factor[r];
    point.tap = tap, point.row = r, point.rest = points.rest[r], point.channels = channels,
    point.stride = stride;
    if (points.index[0][r] >= 0) {
      const int64_t at = rows.map[r] + points.index[0][r] * p.input.channels;
      for (int corner = 0; corner < corners; ++corner) {
        point.locate(p, corner, at + distance.of[corner]);
        point.modulated[corner] = factor * points.weight[corner][r];
      }
      point.add_whole(tile.gradients, tile.columns, point_dots);
    } else {
      const InsideCorners<corners> found([&](int c) { return points.index[c][r]; });
      for (int i = 0; i < found.count; ++i) {
        point.locate(p, i, rows.map[r] + found.index[i] * p.input.channels);
        point.modulated[i] = factor * points.weight[found.corner[i]][r];
      }
      point.add_partial(found, tile.gradients, tile.columns, point_dots);
    }
  };
  constexpr int64_t pair = kPair<T, S>;  // blocks of bfloat16 usually are one or two panels
  with_channels<lanes, pair * lanes, pair * pair * lanes>(block.count, [&](auto channels) {
    for (int64_t r = 0; r < rows.count; r += row_step)
      for (int64_t tap = 0; tap < p.shape.taps; tap += tap_step) {
        const int64_t left = by_rows ? rows.count - r : p.shape.taps - tap;
        for (int64_t i = 0; i < together && i < left; ++i)
          differentiate(channels, r + i % row_step, tap + i % tap_step, dots + i * lanes);
        for (int64_t i = 0; Points && i < together * corners; i += lanes) {
          store(sums, sum_rows(dots + i * lanes));
          for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t point = (i + lane) % together, corner = (i + lane) / together;
            T* const to = tile.dots + ((tap + point % tap_step) * corners + corner) * kBackwardRows + r;
            if (by_rows || point < left) to[point % row_step] = sums[lane];  // rows are padded
          }
        }
      }
  });
}

// The gradients of offset and mask from the dots: [tap · rank + axis][row] of the offset, then [tap][row] of the mask.
template <typename T, typename S, int Rank>
void offset_mask_gradients(const Params<T, S>& p, const TileMemory<T, S, Rank>& tile) {
  constexpr int corners = kCorners<Rank>;
  constexpr int64_t rows = kBackwardRows;
  for (int64_t tap = 0; tap < p.shape.taps; ++tap) {
    const BackwardPoints<T, Rank>& points = tile.table[tap];
    for (int64_t r = 0; r < tile.rows.count; r += kLanes<T>) {  // rows are padded to whole vectors
      const Vector<T> factor = load(points.factor + r), rest = load(points.rest + r);
      Vector<T> gradient[Rank + 1] = {};
      auto index = load(points.index[0] + r);
      for (int corner = 0; corner < corners; ++corner) {
        const Vector<T> dot = load(tile.dots + (tap * corners + corner) * rows + r);
        index &= load(points.index[corner] + r);
        for (int axis = 0; axis < Rank; ++axis)
          gradient[axis] += factor * rest * load(points.slope[axis][corner] + r) * dot;
        gradient[Rank] += load(points.weight[corner] + r) * dot;
      }
      // Outside the map, the offset's gradient is zero. The mask's is gradient · 0, which is NaN for Inf.
      const Vector<T> zero{};
      for (int axis = 0; axis < Rank; ++axis)
        store(tile.offset_mask + (tap * Rank + axis) * rows + r, index == -1 ? zero : gradient[axis]);
      store(tile.offset_mask + (p.shape.taps * Rank + tap) * rows + r, gradient[Rank]);
    }
  }
}

// Copies the output's gradient for the tile: the block's outputs as [output][row] or, if depthwise, as [row][channel]
// with rows p.tile.outputs apart.
template <typename T, typename S, int Rank>
void gather_gradient(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
                     S* gradient) {
  const int64_t outputs = block.outputs, padded = p.tile.outputs;
  const bool last = p.grad_output.channels_last, depthwise = p.shape.is_depthwise();
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    const int64_t count = end - begin;
    const int64_t channels_last_at =
        (image * p.shape.out_pixels + pixel) * p.shape.out_channels + block.first_output;
    const int64_t channels_first_at =
        (image * p.shape.out_channels + block.first_output) * p.shape.out_pixels + pixel;
    const S* const from = p.grad_output.data + (last ? channels_last_at : channels_first_at);
    if (last && depthwise) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(gradient + (begin + r) * padded, from + r * p.shape.out_channels, outputs * sizeof(S));
    } else if (last) {
      transpose(from, p.shape.out_channels, gradient + begin, kBackwardRows, count, outputs);
    } else if (depthwise) {
      transpose(from, p.shape.out_pixels, gradient + begin * padded, padded, outputs, count);
    } else {
      for (int64_t o = 0; o < outputs; ++o)
        std::memcpy(gradient + o * kBackwardRows + begin, from + o * p.shape.out_pixels, count * sizeof(S));
    }
  });
}

// Channel `index` of an image's gradients of offset and mask: [tap · rank + axis] of the offset, then [tap] of the
// mask. Null if it is not needed.
template <typename T, typename S>
T* offset_mask_channel(const Params<T, S>& p, const ChannelBlock& block, int64_t image, int64_t index) {
  const DeformConvShapes& s = p.shape;
  const int64_t offsets = s.taps * s.rank;
  const bool of_mask = index >= offsets;
  T* const to = of_mask ? p.grad_offset_mask.mask : p.grad_offset_mask.offset;
  if (to == nullptr) return nullptr;
  const int64_t channel = of_mask ? (image * s.mask_groups + block.mask_group) * s.taps + index - offsets
                                  : (image * s.offset_groups + block.offset_group) * offsets + index;
  return to + channel * s.out_pixels;
}

// The same in block i's own gradients, if blocks share points.
template <typename T, typename S>
T* offset_mask_channel_of_block(const Params<T, S>& p, int64_t i, int64_t image, int64_t index) {
  const int64_t channels = p.shape.taps * (p.shape.rank + 1);
  return p.grad_offset_mask_of_blocks +
         (((i - p.blocks.begin) * channels + index) * p.images + image) * p.shape.out_pixels;
}

// Stores a tile's gradients of offset and mask.
template <typename T, typename S, int Rank>
void store_offset_mask(const Params<T, S>& p, int64_t i, const Rows<T, Rank>& rows, const T* offset_mask) {
  const ChannelBlock& block = p.blocks.data[i];
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    for (int64_t index = 0; index < p.shape.taps * (Rank + 1); ++index) {
      T* to = offset_mask_channel(p, block, image, index);
      if (to == nullptr) continue;
      if (block.shares_points) to = offset_mask_channel_of_block(p, i, image, index);
      std::memcpy(to + pixel, offset_mask + index * kBackwardRows + begin, (end - begin) * sizeof(T));
    }
  });
}

template <typename T, typename S>
void sum_offset_mask(const Params<T, S>& p, int64_t image, int64_t index) {
  const bool of_mask = index >= p.shape.taps * p.shape.rank;
  const auto group_of = [&](const ChannelBlock& block) {
    return of_mask ? block.mask_group : block.offset_group;
  };
  for (int64_t i = p.blocks.begin; i < p.blocks.end; ++i) {
    const ChannelBlock& block = p.blocks.data[i];
    T* __restrict to = offset_mask_channel(p, block, image, index);
    if (to == nullptr || !block.shares_points) continue;
    const bool first = i == 0 || group_of(p.blocks.data[i - 1]) != group_of(block);
    const T* __restrict from = offset_mask_channel_of_block(p, i, image, index);
    for (int64_t pixel = 0; pixel < p.shape.out_pixels; ++pixel)
      to[pixel] = first ? from[pixel] : to[pixel] + from[pixel];
  }
}

template <typename T, typename S>
void store_map(const T* from, int64_t pixels, int64_t channels, S* to, int64_t to_stride,
               bool channels_last) {
  if (channels_last) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      store_row(from + pixel * channels, to + pixel * to_stride, channels);
  } else if constexpr (std::is_same_v<T, S>) {
    transpose(from, channels, to, to_stride, pixels, channels);
  } else {
    constexpr int64_t most = 256;  // pixels that fit the L1 cache
    T turned[kNR<T> * most];
    for (int64_t first = 0; first < pixels; first += most)
      for (int64_t channel = 0; channel < channels; channel += kNR<T>) {
        const int64_t rows = pixels - first < most ? pixels - first : most;
        const int64_t columns = channels - channel < kNR<T> ? channels - channel : kNR<T>;
        transpose(from + first * channels + channel, channels, turned, most, rows, columns);
        for (int64_t i = 0; i < columns; ++i)
          store_row(turned + i * most, to + (channel + i) * to_stride + first, rows);
      }
  }
}

// The first output to which a panel of the block's columns contributes; there are panel_outputs of them. A panel of
// several groups has the weights of all outputs, with zeros between a group's channels and the other groups' outputs.
template <typename T>
int64_t first_output_of(const ChannelBlock& block, int64_t panel) {
  return block.groups == 1 ? 0 : panel % (block.count / kNR<T>)*block.panel_outputs;
}

// The number of columns of a panel, without the padding at the end of the last panel.
template <typename T, typename Params>
int64_t columns_of(const Params& p, const ChannelBlock& block, int64_t panel) {
  const int64_t left = p.shape.taps * block.count - panel * kNR<T>;
  return left < kNR<T> ? left : kNR<T>;
}

// The gradient of a panel of columns of several groups, computed group by group: in a single product, in which the
// weights between different groups are zero, Inf and NaN would spread to the other groups.
template <typename T, typename S>
void multiply_panel_by_groups(const ChannelBlock& block, int64_t rows, const S* gradient, const S* weight,
                              T* columns) {
  constexpr int64_t pair = kPair<T, S>;
  const int64_t channels = block.count / block.groups, outputs = block.outputs / block.groups;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t column = 0; column < kNR<T>; ++column) {
      const int64_t first = column / channels * outputs;
      T sum = 0;
      for (int64_t o = first; o < first + outputs; ++o)
        sum += from_stored(gradient[o * kBackwardRows + r]) *
               from_stored(weight[(o / pair * kNR<T> + column) * pair + o % pair]);
      columns[r * kNR<T> + column] = sum;
    }
}

template <typename T, typename S>
DepthwiseTile depthwise_tile(const Params<T, S>& p, const ChannelBlock& block, int64_t rows) {
  return {p.shape.taps, block.count, rows, panel_stride<T>(p.tile), p.tile.outputs};
}

// The columns' gradient: the output's gradient times the weight.
template <typename T, typename S, int Rank>
void multiply_by_weight(const Params<T, S>& p, const ChannelBlock& block,
                        const TileMemory<T, S, Rank>& tile) {
  constexpr int64_t pair = kPair<T, S>;
  const int64_t rows = tile.rows.count, panels = block.depth / kNR<T>;
  const int64_t outputs = round_up(block.panel_outputs, kDepthStep<T, S>),
                more = outputs - block.panel_outputs;
  const bool together = block.groups == 1 || all_finite<T>(tile.gradient, kBackwardRows, block.outputs, rows);
  const int64_t stride = TileMemory<T, S, Rank>::pair_stride(p);
  // channels-last gradients of bfloat16 are read where they lie, unless padding is needed: other outputs follow them
  const bool in_place = p.grad_output.channels_last && more == 0;
  if (pair > 1 && !in_place) {
    transpose(tile.gradient, kBackwardRows, tile.pairs, stride, block.outputs, rows);
    for (int64_t r = 0; more > 0 && r < rows; ++r)
      std::memset(tile.pairs + r * stride + block.outputs, 0, more * sizeof(S));
  }
  const int64_t first_row = tile.rows.image * p.shape.out_pixels + tile.rows.pixel;
  const S* const left =
      in_place ? p.grad_output.data + first_row * p.shape.out_channels + block.first_output : tile.pairs;
  const int64_t left_stride = in_place ? p.shape.out_channels : stride;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = first_output_of<T>(block, panel);
    const S* const weight = p.weight + block.weight_at + panel * outputs * kNR<S>;
    T* const to = tile.gradients + panel * panel_stride<T>(p.tile);
    const int64_t columns = columns_of<T>(p, block, panel);
    const auto multiply = [&](const auto& operand) {
      gemm<T, S>(operand, rows, weight, outputs, columns, to, kNR<T>, 0, false);
    };
    if (!together)
      multiply_panel_by_groups<T>(block, rows, tile.gradient + first * kBackwardRows, weight, to);
    else if constexpr (pair > 1)
      multiply(LeftOperand<S, int64_t, Constant<1>>{left + first, left_stride, {}, outputs, 0});
    else
      multiply(LeftOperand<S, Constant<1>, Constant<kBackwardRows>>{
          tile.gradient + first * kBackwardRows, {}, {}, outputs, 0});
  }
}

// Arranges the columns for products of bfloat16: [row][kNR] -> [row / 2][kNR][2] in every panel. Columns and gradient
// are padded with rows of zeros to a multiple of kDepthStep.
template <typename T, typename S, int Rank>
void pair_columns(const Params<T, S>& p, const ChannelBlock& block, const TileMemory<T, S, Rank>& tile) {
  const int64_t rows = tile.rows.count, more = round_up(rows, kDepthStep<T, S>) - rows;
  for (int64_t o = 0; more > 0 && o < block.outputs; ++o)
    std::memset(tile.gradient + o * kBackwardRows + rows, 0, more * sizeof(S));
  for (int64_t panel = 0; panel < block.depth / kNR<S>; ++panel) {
    S* at = tile.columns + panel * panel_stride<S>(p.tile);
    std::memset(at + rows * kNR<S>, 0, more * kNR<S> * sizeof(S));
    for (int64_t r = 0; r < rows; r += 2, at += 2 * kNR<S>) {
      constexpr int64_t lanes = kLanes<S>;
      Vector<S> row[2][2], paired[2][2];
      for (int i = 0; i < 4; ++i) row[i / 2][i % 2] = load(at + i * lanes);
      for (int half = 0; half < 2; ++half)
        join_pairs<S>(row[0][half], row[1][half], paired[half][0], paired[half][1]);
      for (int i = 0; i < 4; ++i) store(at + i * lanes, paired[i / 2][i % 2]);
    }
  }
}

// The signature of sample_backward
template <typename T, typename S, int Rank>
using SampleBackward = decltype(&sample_backward<T, S, Rank, true, true, true>);

// Adds the output's gradient, [output][row], times the columns, for part `index` of the outputs.
template <typename T, typename S, int Rank>
void add_weight_gradient(const Params<T, S>& p, const ChannelBlock& block, const TileMemory<T, S, Rank>& tile,
                         int64_t index) {
  T* const to = p.grad_weight + block.weight_at;
  if constexpr (std::is_same_v<T, S>)
    if (p.shape.is_depthwise())
      return depthwise_weight_gradient(depthwise_tile(p, block, tile.rows.count), tile.gradient, tile.columns,
                                       to);
  const int64_t rows = round_up(tile.rows.count, kDepthStep<T, S>);
  const int64_t part = ceil_div(block.panel_outputs, p.weight_parts), first = index * part;
  const int64_t outputs = block.panel_outputs - first < part ? block.panel_outputs - first : part;
  for (int64_t panel = 0; panel < block.depth / kNR<S>; ++panel) {
    const S* const from = tile.gradient + (first_output_of<T>(block, panel) + first) * kBackwardRows;
    gemm<T, S>(LeftOperand<S, Constant<kBackwardRows>, Constant<1>>{from, {}, {}, rows, 0}, outputs,
               tile.columns + panel * panel_stride<S>(p.tile), rows, columns_of<T>(p, block, panel),
               to + (panel * block.panel_outputs + first) * kNR<T>, kNR<T>, 0, true);
  }
}

template <typename T, typename S, int Rank>
void compute_tile_of(const Params<T, S>& p, const BackwardTile& of, const AddInTurn& add_in_turn) {
  Arena arena{of.memory};
  TileMemory<T, S, Rank> tile(arena, p);
  const ChannelBlock& block = p.blocks.data[of.block];
  const bool points = p.grad_offset_mask.offset || p.grad_offset_mask.mask,
             is_depthwise = p.shape.is_depthwise();
  const bool input = p.grad_input != nullptr, columns = p.grad_weight != nullptr;
  // [input][points][columns, for the weight's gradient]
  static constexpr SampleBackward<T, S, Rank> samplers[2][2][2] = {
      {{nullptr, sample_backward<T, S, Rank, false, false, true>},
       {sample_backward<T, S, Rank, false, true, false>, sample_backward<T, S, Rank, false, true, true>}},
      {{sample_backward<T, S, Rank, true, false, false>, sample_backward<T, S, Rank, true, false, true>},
       {sample_backward<T, S, Rank, true, true, false>, sample_backward<T, S, Rank, true, true, true>}}};
  tile.rows.set(p.shape, p.input, of.first, of.rows);
  compute_sampling_table(p.shape, p.offset_mask, block, tile.rows, tile.table);
  gather_gradient(p, block, tile.rows, tile.gradient);
  if (points || input) {
    if (!is_depthwise)
      multiply_by_weight(p, block, tile);
    else if constexpr (std::is_same_v<T, S>)
      depthwise_columns_gradient(depthwise_tile(p, block, of.rows), tile.gradient, p.weight + block.weight_at,
                                 tile.gradients);
  }
  const bool together = input && !p.input_apart;
  const auto sample = samplers[together][points][columns];
  if (input)
    add_in_turn(0, [&] { together ? sample(p, block, tile) : samplers[true][false][false](p, block, tile); });
  if (!together && sample) sample(p, block, tile);
  if (points) {
    offset_mask_gradients(p, tile);
    store_offset_mask(p, of.block, tile.rows, tile.offset_mask);
  }
  if (!columns) return;
  if constexpr (!std::is_same_v<T, S>) pair_columns(p, block, tile);
  for (int64_t part = 0; part < p.weight_parts; ++part)
    add_in_turn(1 + part, [&] { add_weight_gradient(p, block, tile, part); });
}

template <typename T, typename S>
int64_t tile_bytes(const Params<T, S>& p) {
  return dispatch_rank(p.shape.rank, [&](auto rank) { return bytes_of<TileMemory<T, S, rank()>>(p); });
}

template <typename T, typename S>
void compute_tile(const Params<T, S>& p, const BackwardTile& tile, const AddInTurn& add_in_turn) {
  dispatch_rank(p.shape.rank, [&](auto rank) { compute_tile_of<T, S, rank()>(p, tile, add_in_turn); });
}

template <typename T, typename S = T>
constexpr DeformConvBackward<T, S> kernels_of{kDepthStep<T, S>,
                                              tile_bytes<T, S>,
                                              pack_backward<T, S>,
                                              compute_tile<T, S>,
                                              unpack_weight_gradient<T, S>,
                                              store_map<T, S>,
                                              sum_offset_mask<T, S>};

}  // namespace

const StoredKernelTable<DeformConvBackward>& deform_conv_backward_kernels() {
  static const StoredKernelTable<DeformConvBackward> kernels{
      {DCNZOO_FLOAT_KERNELS(deform_conv_backward_kernels, kernels_of<float>),
       DCNZOO_DOUBLE_KERNELS(deform_conv_backward_kernels, kernels_of<double>)},
      DCNZOO_BFLOAT16_KERNELS(kernels_of<float, BFloat16Bits>)};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
