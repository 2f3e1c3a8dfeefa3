// The backward of deformable convolution on the CPU, as described in ops/README.md.
//
// For a tile and a block of channels, it multiplies the output's gradient by the weight, which gives the columns'
// gradient, and then samples the input again. The second step computes the gradients of input, offset and mask, and
// replaces the columns' gradient by the columns in place, for the weight's gradient.
#include "../common/gemm.h"
#include "lanes.h"
#include "sample_backward.h"
#include "weight_packing.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

// Copies the output's gradient for the tile, in the layout of TileMemory.gradient.
template <typename T, typename S, int Rank>
void gather_gradient(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
                     S* gradient) {
  const int64_t outputs = block.outputs;
  const bool last = p.grad_output.channels_last;
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    const int64_t count = end - begin;
    const int64_t channels_last_at =
        (image * p.shape.out_pixels + pixel) * p.shape.out_channels + block.first_output;
    const int64_t channels_first_at =
        (image * p.shape.out_channels + block.first_output) * p.shape.out_pixels + pixel;
    const S* const from = p.grad_output.data + (last ? channels_last_at : channels_first_at);
    if (block.is_narrow()) {
      const int64_t stride = last ? p.shape.out_channels : p.shape.out_pixels;
      const int64_t each = outputs / block.groups, channel_stride = last ? 1 : stride, lanes = kLanes<S>;
      for (int64_t c = 0; c < block.width; c += lanes)
        for (int64_t o = 0; o < each; ++o) {
          LaneMap map = block.output_lanes(o, 0);
          map.groups -= c / block.lanes;
          to_lanes(map, from + c / block.lanes * each * channel_stride, stride, last,
                   gradient + ((c * kBackwardRows + begin * lanes) * each + o * lanes), lanes, each * lanes,
                   count);
        }
    } else if (last) {
      transpose(from, p.shape.out_channels, gradient + begin, kBackwardRows, count, outputs);
    } else {
      for (int64_t o = 0; o < outputs; ++o)
        std::memcpy(gradient + o * kBackwardRows + begin, from + o * p.shape.out_pixels, count * sizeof(S));
    }
  });
}

template <typename T, typename S>
void sum_offset_mask(const Params<T, S>& p, int64_t image, int64_t index) {
  const bool of_mask = index >= p.shape.taps * p.shape.rank;
  const auto group_of = [&](const ChannelBlock& block) {
    return of_mask ? block.points.mask : block.points.offset;
  };
  for (int64_t i = p.blocks.begin; i < p.blocks.end; ++i) {
    const ChannelBlock& block = p.blocks.data[i];
    T* __restrict to = offset_mask_channel(p, block.points, image, index);
    if (to == nullptr || !block.shares_points) continue;
    const bool first = i == 0 || group_of(p.blocks.data[i - 1]) != group_of(block);
    const T* __restrict from = offset_mask_channel_of_block(p, i, image, index);
    for (int64_t pixel = 0; pixel < p.shape.out_pixels; ++pixel)
      to[pixel] = first ? from[pixel] : to[pixel] + from[pixel];
  }
}

// The number of columns of a panel, without the padding at the end of the last panel.
template <typename T, typename Params>
int64_t columns_of(const Params& p, const ChannelBlock& block, int64_t panel) {
  const int64_t left = p.shape.taps * block.count - panel * kNR<T>;
  return left < kNR<T> ? left : kNR<T>;
}

template <typename T>
NarrowGradient<T> narrow_gradient(const Params<T, T>& p, const ChannelBlock& block, int64_t rows,
                                  const T* gradient) {
  return {rows, p.shape.taps, block.width, p.shape.group_outputs(), block.lanes, gradient};
}

// The columns' gradient: the output's gradient times the weight.
template <typename T, typename S, int Rank>
void multiply_by_weight(const Params<T, S>& p, const ChannelBlock& block,
                        const TileMemory<T, S, Rank>& tile) {
  constexpr int64_t pair = kPair<T, S>;
  const int64_t rows = tile.rows.count, panels = block.depth / kNR<T>;
  if constexpr (pair == 1)
    if (block.is_narrow())
      return narrow_gradient(p, block, rows, tile.gradient)
          .multiply_by_weight(p.weight + block.weight_at, tile.gradients);
  const int64_t outputs = round_up(block.outputs, kDepthStep<T, S>), more = outputs - block.outputs;
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
    const S* const weight = p.weight + block.weight_at + panel * outputs * kNR<S>;
    T* const to = tile.gradients.at(0, panel * kNR<T>);
    const int64_t columns = columns_of<T>(p, block, panel);
    const auto multiply = [&](const auto& operand) {
      gemm<T, S>(operand, rows, weight, outputs, columns, to, kNR<T>, 0, false);
    };
    if constexpr (pair > 1)
      multiply(LeftOperand<S, int64_t, Constant<1>>{left, left_stride, {}, outputs, 0});
    else
      multiply(LeftOperand<S, Constant<1>, Constant<kBackwardRows>>{tile.gradient, {}, {}, outputs, 0});
  }
}

// Arranges the columns for products of bfloat16: [row][kNR] -> [row / 2][kNR][2] in every panel. Columns and gradient
// are padded with rows of zeros to a multiple of kDepthStep.
template <typename T, typename S, int Rank>
void pair_columns(const ChannelBlock& block, const TileMemory<T, S, Rank>& tile) {
  const int64_t rows = tile.rows.count, more = round_up(rows, kDepthStep<T, S>) - rows;
  for (int64_t o = 0; more > 0 && o < block.outputs; ++o)
    std::memset(tile.gradient + o * kBackwardRows + rows, 0, more * sizeof(S));
  for (int64_t panel = 0; panel < block.depth / kNR<S>; ++panel) {
    S* at = tile.columns.at(0, panel * kNR<S>);
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
    if (block.is_narrow())
      return narrow_gradient(p, block, tile.rows.count, tile.gradient).multiply_by_columns(tile.columns, to);
  const int64_t rows = round_up(tile.rows.count, kDepthStep<T, S>);
  const int64_t part = ceil_div(block.outputs, p.weight_parts), first = index * part;
  const int64_t outputs = block.outputs - first < part ? block.outputs - first : part;
  for (int64_t panel = 0; panel < block.depth / kNR<S>; ++panel) {
    const S* const from = tile.gradient + first * kBackwardRows;
    gemm<T, S>(LeftOperand<S, Constant<kBackwardRows>, Constant<1>>{from, {}, {}, rows, 0}, outputs,
               tile.columns.at(0, panel * kNR<S>), rows, columns_of<T>(p, block, panel),
               to + (panel * block.outputs + first) * kNR<T>, kNR<T>, 0, true);
  }
}

template <typename T, typename S, int Rank>
void compute_tile_of(const Params<T, S>& p, const BackwardTile& of, const AddInTurn& add_in_turn) {
  Arena arena{of.memory};
  TileMemory<T, S, Rank> tile(arena, p);
  const ChannelBlock& block = p.blocks.data[of.block];
  const bool points = p.grad_offset_mask.offset || p.grad_offset_mask.mask;
  const bool input = p.grad_input != nullptr, columns = p.grad_weight != nullptr;
  // [input][points][columns, for the weight's gradient]
  static constexpr SampleBackward<T, S, Rank> samplers[2][2][2] = {
      {{nullptr, sample_backward<T, S, Rank, false, false, true>},
       {sample_backward<T, S, Rank, false, true, false>, sample_backward<T, S, Rank, false, true, true>}},
      {{sample_backward<T, S, Rank, true, false, false>, sample_backward<T, S, Rank, true, false, true>},
       {sample_backward<T, S, Rank, true, true, false>, sample_backward<T, S, Rank, true, true, true>}}};
  tile.rows.set(p.shape, p.input, of.first, of.rows);
  gather_gradient(p, block, tile.rows, tile.gradient);
  if (points || input) multiply_by_weight(p, block, tile);
  const bool together = input && !p.input_apart;
  const auto sample = [&](bool with_input, bool with_points, bool with_columns) {
    if (!(with_input || with_points || with_columns)) return;
    if constexpr (std::is_same_v<T, S>)
      if (p.over_pixels)
        return sample_backward_over_pixels<T, Rank>(p, of.block, tile, with_input, with_points, with_columns);
    samplers[with_input][with_points][with_columns](p, block, tile);
  };
  if (!p.over_pixels) compute_sampling_table(p.shape, p.offset_mask, block.points, tile.rows, tile.table);
  if (p.over_pixels && (points || input))
    tile.planes.from_panels(tile.gradients, block.depth, tile.rows.count);
  if (input) add_in_turn(0, [&] { sample(true, points && together, columns && together); });
  if (!together) sample(false, points, columns);
  if (p.over_pixels && columns) tile.planes.to_panels(tile.gradients, block.depth, tile.rows.count);
  if (points && !p.over_pixels) {
    for (int64_t tap = 0; tap < p.shape.taps; ++tap)
      offset_mask_gradients(p, tile, tap, tile.table[tap], tile.dots + tap * kCorners<Rank> * kBackwardRows);
    store_offset_mask(p, of.block, block.points, tile.rows, tile.offset_mask);
  }
  if (!columns) return;
  if constexpr (!std::is_same_v<T, S>) pair_columns(block, tile);
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
                                              from_lanes<T, S>,
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
