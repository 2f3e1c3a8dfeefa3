// The forward of deformable convolution on the CPU. ops/README.md describes it.
//
// For a tile of output pixels and a block of channels, it computes the sampling table (vectorised over pixels), samples
// the input (vectorised over channels) into panels of columns that stay in the L2 cache, and multiplies them by the
// packed weight.
#include <type_traits>

#include "../common/gemm.h"
#include "sampling_table.h"
#include "weight_packing.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S>
using Params = DeformConvForwardParams<T, S>;

// Computes the columns of a tile for a block of channels. whole: all points of the table are whole. For few channels, the
// inner loop is over several rows of a tap, because their columns have the same place in each row.
template <typename T, typename S, int Rank, typename Panel, bool whole>
void sample(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
            const ForwardPoints<T, Rank>* table, S* __restrict columns) {
  constexpr int corners = kCorners<Rank>;
  constexpr int64_t pixels_ahead = 8;  // that are fetched into the L1 cache
  const int64_t stride = panel_stride<S>(p.tile), pixel_stride = p.input.pixel_stride(block);
  const int64_t ahead = pixels_ahead * p.shape.stride[Rank - 1] * pixel_stride;
  const S* const maps = p.input.data + p.input.place_of(block, p.shape.in_pixels);
  const CornerDistances<Rank> distance(p.shape, pixel_stride);
  // Local variables, because the compiler would read members again after every store.
  const int64_t count = rows.count, taps = p.shape.taps;
  const int64_t* const starts = rows.map;
  const auto sample = [&](auto channels) {
    constexpr bool few = !whole || !std::is_same_v<decltype(channels), int64_t>;
    constexpr int64_t step = few ? 16 : 1;
    for (int64_t begin = 0; begin < count; begin += step)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const ForwardPoints<T, Rank>& points = table[tap];
        const int64_t end = few && count - begin < step ? count : begin + step;
        for (int64_t r = begin; r < end; ++r) {
          const S* const map = maps + starts[r];
          const S* from[corners];
          T weight[corners];
          int used = corners;
          if constexpr (whole) {
            const S* const first = map + int64_t(points.index[0][r]) * pixel_stride;
            for (int corner = 0; corner < corners; ++corner) {  // the corners of a pair need one register
              from[corner] = first + distance.of[corner & ~1] + (corner & 1) * pixel_stride;
              weight[corner] = points.weight[corner][r];
            }
          } else {
            const InsideCorners<corners> inside([&](int c) { return points.index[c][r]; });
            used = inside.count;
            for (int i = 0; i < used; ++i) {
              from[i] = map + inside.index[i] * pixel_stride;
              weight[i] = points.weight[inside.corner[i]][r];
            }
          }
          const S* const fetched = few ? nullptr : from[corners - 1] + ahead;
          each_column<T, Panel>(tap, channels, r, stride, [&](auto value, int64_t c, int64_t at) {
            for (int i = 0; i < (whole ? corners : used); ++i)
              value += weight[i] * load_lanes<decltype(value)>(from[i] + c);
            store_lanes(columns + at, whole ? value : value * points.rest[r]);
            // not for single channels: the compiler would not vectorise the loop
            if constexpr (!few && !std::is_arithmetic_v<decltype(value)>)
              __builtin_prefetch(fetched + c, 0, 3);
          });
        }
      }
  };
  with_channels<kLanes<T> / 2, kLanes<T>, kNR<T>>(block.count, sample);
}

// Loads a group's sums over the blocks of earlier passes. (Only S = T has several passes.)
template <typename T, typename S, int Rank>
void load_group(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows, T* result) {
  const int64_t padded = p.tile.outputs, first = block.first_output;
  if constexpr (std::is_same_v<S, T>)
    rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
      const T* from = p.output.data + (image * p.shape.out_channels + first) * p.shape.out_pixels + pixel;
      transpose(from, p.shape.out_pixels, result + begin * padded, padded, block.outputs, end - begin);
    });
}

// Stores the sums of a group. If they are complete, the bias is added first.
template <typename T, typename S, int Rank>
void store_group(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows, T* result,
                 T* turned) {
  const int64_t first = block.first_output, outputs = block.outputs, padded = p.tile.outputs;
  if (p.bias && block.closes_group) {
    const T* bias = p.bias + first;
    for (int64_t r = 0; r < rows.count; ++r) {
      T* __restrict row = result + r * padded;
      for (int64_t o = 0; o < outputs; ++o) row[o] += bias[o];
    }
  }
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    if (p.output.channels_last) {
      for (int64_t r = begin; r < end; ++r)
        store_row(
            result + r * padded,
            p.output.data + (image * p.shape.out_pixels + pixel + r - begin) * p.shape.out_channels + first,
            outputs);
      return;
    }
    S* to = p.output.data + (image * p.shape.out_channels + first) * p.shape.out_pixels + pixel;
    if constexpr (std::is_same_v<S, T>) {
      transpose(result + begin * padded, padded, to, p.shape.out_pixels, end - begin, outputs);
    } else {
      transpose(result + begin * padded, padded, turned, p.tile.rows, end - begin, outputs);
      for (int64_t o = 0; o < outputs; ++o)
        store_row(turned + o * p.tile.rows, to + o * p.shape.out_pixels, end - begin);
    }
  });
}

// Adds the block's products to the result, group by group. A group is written in whole panels; the next group
// overwrites the padding after its outputs.
template <typename T, typename S>
void multiply_groups(const Params<T, S>& p, const ChannelBlock& block, int64_t rows, S* columns, T* result) {
  constexpr int64_t panel = kNR<S>;
  const int64_t stride = panel_stride<S>(p.tile), channels = block.count / block.groups;
  if constexpr (kLanes<T> >= 8) {  // two groups of four
    if (narrow_channels<T>(p.shape, block)) {
      const auto multiply = channels == 4 ? multiply_narrow<T, S, 4> : multiply_narrow<T, S, 8>;
      for (int64_t c = 0; c < block.count; c += kColumns<S>)
        multiply(columns + c / panel * stride + c % panel, rows, p.shape.taps, block.count / panel * stride,
                 p.weight + block.weight_at + c * p.shape.taps * channels, result + c, p.tile.outputs);
      return;
    }
  }
  const int64_t outputs = block.outputs / block.groups, depth = packed_depth<T, S>(p.shape, block);
  // the weight's last rows are zero, but the columns must not be NaN
  for (int64_t last = p.shape.taps * channels; last < depth; ++last)
    for (int64_t r = 0; r < rows; ++r) columns[last / panel * stride + r * panel + last % panel] = 0;
  // a single group uses all columns; each of several groups uses its channels of every tap
  const int64_t width = block.groups == 1 ? panel : channels;
  const int64_t width_stride = block.groups == 1 ? stride : block.count / panel * stride;
  for (int64_t group = 0; group < block.groups; ++group) {
    const int64_t column = group * channels;
    const LeftOperand<S, Constant<panel>, Constant<1>> left{
        columns + column / panel * stride + column % panel, {}, {}, width, width_stride};
    gemm<T, S>(left, rows, p.weight + block.weight_at + group * round_up(outputs, panel) * depth, depth,
               outputs, result + group * outputs, p.tile.outputs, kNR<T>, !block.opens_group);
  }
}

template <typename T, typename S, int Rank>
struct ForwardScratch {
  Rows<T, Rank> rows;
  ForwardPoints<T, Rank>* table;  // [tap]
  S* columns;                     // panels of [row][kNR]
  T* result;                      // [row][outputs, padded to whole panels]
  T* turned;  // the transposed result, [output][row], before its conversion to a narrower type

  ForwardScratch(Arena& arena, const Params<T, S>& p)
      : rows(Rows<T, Rank>::allocate(arena, p.tile.rows)),
        table(arena.take<ForwardPoints<T, Rank>>(p.shape.taps)),
        columns(arena.take<S>(columns_size<S>(p.tile))),
        result(arena.take<T>(p.tile.outputs * p.tile.rows)),
        turned(arena.take<T>(sizeof(S) == sizeof(T) ? 0 : p.tile.outputs * p.tile.rows)) {}
};

template <typename T, typename S, int Rank>
void compute_tile_of(const Params<T, S>& p, int64_t first, int64_t rows, char* scratch) {
  Arena arena{scratch};
  ForwardScratch<T, S, Rank> tile(arena, p);
  tile.rows.set(p.shape, p.input, first, rows);
  // At first, all points are stored as whole ones. If an output is not finite, a pixel that does not count may be the cause:
  // the group of this output is computed again.
  bool whole = true;
  for (int axis = 0; axis < Rank; ++axis) whole &= p.shape.in[axis] > 1;
  const ChannelBlock* sampled = nullptr;  // the block that the table was computed for
  for (int64_t i = p.blocks.begin, group_begin = i; i < p.blocks.end; ++i) {
    const ChannelBlock& block = p.blocks.data[i];
    if (!sampled || block.offset_group != sampled->offset_group || block.mask_group != sampled->mask_group)
      compute_sampling_table(p.shape, p.offset_mask, block, tile.rows, tile.table, whole);
    sampled = &block;
    const auto sample_panels = [&](auto panel) {
      const auto sampler =
          whole ? sample<T, S, Rank, decltype(panel), true> : sample<T, S, Rank, decltype(panel), false>;
      sampler(p, block, tile.rows, tile.table, tile.columns);
    };
    has_whole_panels(p.shape, block, kNR<S>) ? sample_panels(Whole<S>{}) : sample_panels(Vector<T>{});
    if (i == p.blocks.begin && !block.opens_group) load_group<T, S, Rank>(p, block, tile.rows, tile.result);
    if (p.shape.is_depthwise()) {
      const DepthwiseTile depthwise{p.shape.taps, block.count, rows, panel_stride<S>(p.tile), p.tile.outputs};
      depthwise_forward<T, S>(depthwise, tile.columns, p.weight + block.weight_at, tile.result);
    } else {
      multiply_groups<T, S>(p, block, rows, tile.columns, tile.result);
    }
    if (i + 1 < p.blocks.end && !block.closes_group) continue;
    if (whole && !all_finite<T>(tile.result, p.tile.outputs, rows, block.outputs)) {
      whole = false, sampled = nullptr, i = group_begin - 1;
      continue;
    }
    store_group<T, S, Rank>(p, block, tile.rows, tile.result, tile.turned);
    group_begin = i + 1;
  }
}

template <typename T, typename S>
int64_t scratch_bytes(const Params<T, S>& p) {
  return dispatch_rank(p.shape.rank, [&](auto rank) { return bytes_of<ForwardScratch<T, S, rank()>>(p); });
}

template <typename T, typename S>
void compute_tile(const Params<T, S>& p, int64_t first, int64_t rows, char* scratch) {
  dispatch_rank(p.shape.rank, [&](auto rank) { compute_tile_of<T, S, rank()>(p, first, rows, scratch); });
}

// With AMX, convolutions of few channels spend most of their time on sampling. Sampling in float is faster in two cases: the
// channels fill only one half vector, or they do not fill half vectors and bfloat16 is converted value by value.
bool suits([[maybe_unused]] int64_t channels) {
#if defined(__AMX_BF16__)
  constexpr int64_t half = kLanes<float> / 2;
  return channels % half == 0 && channels > half;
#else
  return true;
#endif
}

template <typename T, typename S = T>
constexpr DeformConvForward<T, S> kernels_of{
    kNR<S>, suits, scratch_bytes<T, S>, pack_forward<T, S>, compute_tile<T, S>, transpose<S>};

}  // namespace

const StoredKernelTable<DeformConvForward>& deform_conv_forward_kernels() {
  static const StoredKernelTable<DeformConvForward> kernels{
      {DCNZOO_FLOAT_KERNELS(deform_conv_forward_kernels, kernels_of<float>),
       DCNZOO_DOUBLE_KERNELS(deform_conv_forward_kernels, kernels_of<double>)},
      DCNZOO_BFLOAT16_KERNELS(kernels_of<float, BFloat16Bits>)};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
