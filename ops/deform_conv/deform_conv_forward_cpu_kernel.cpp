// The forward of deformable convolution on the CPU. ops/README.md describes it.
//
// For a tile of output pixels and a block of channels, it computes the sampling table (vectorised over pixels), samples
// the input (vectorised over channels) into panels of columns that stay in the L2 cache, and multiplies them by the
// packed weight.
#include <type_traits>

#include "../common/gemm.h"
#include "lanes.h"
#include "samples.h"
#include "weight_packing.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S>
using Params = DeformConvForwardParams<T, S>;

// The distance of the pixels that are fetched into the L1 cache
constexpr int64_t kPixelsAhead = 8;

// Computes the columns of a tile for a block of channels, over channels. For few channels, the inner loop is over several rows
// of a tap, because their columns have the same place in each row.
template <typename T, typename S, int Rank, typename Panel, bool whole>
void sample(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
            const ForwardPoints<T, Rank>* table, const Panels<S>& panels) {
  const SampledColumns<T, S, Rank, whole> sampled(p, block, rows, table);
  S* const __restrict columns = panels.data;
  const int64_t stride = panels.stride;
  const int64_t ahead = kPixelsAhead * p.shape.stride[Rank - 1] * sampled.pixel_stride;
  // Local variables, because the compiler would read members again after every store.
  const int64_t count = rows.count, taps = p.shape.taps;
  const auto sample = [&](auto channels) {
    constexpr bool few = !whole || !std::is_same_v<decltype(channels), int64_t>;
    constexpr int64_t step = few ? 16 : 1;
    for (int64_t begin = 0; begin < count; begin += step)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t end = few && count - begin < step ? count : begin + step;
        for (int64_t r = begin; r < end; ++r) {
          const auto point = sampled.at(tap, r);
          const S* const fetched = few ? nullptr : point.from[kCorners<Rank> - 1] + ahead;
          each_column<T, Panel>(tap, channels, r, stride, [&](auto value, int64_t c, int64_t at) {
            store_lanes(columns + at, point.template read<decltype(value)>(c));
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

// Stores the lanes of a result, from column `at` on, as outputs of a block.
template <typename T, typename S, int Rank>
void store_lanes_of(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
                    const LaneMap& lanes, const T* result) {
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    const bool last = p.output.channels_last;
    S* const map = p.output.data + image * p.shape.out_channels * p.shape.out_pixels;
    from_lanes(lanes, result + begin * p.tile.outputs, round_up(lanes.groups * lanes.lanes, kLanes<T>),
               p.tile.outputs,
               map + (last ? pixel * p.shape.out_channels + block.first_output
                           : block.first_output * p.shape.out_pixels + pixel),
               last ? p.shape.out_channels : p.shape.out_pixels, last, end - begin);
  });
}

// Stores the sums of a block. If those of its group are complete, the bias is added first, unless groups are narrow.
template <typename T, typename S, int Rank>
void store_result(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows, T* result) {
  const int64_t outputs = block.outputs;
  if (block.is_narrow()) {
    for (int64_t part = 0; part < block.parts(); ++part)
      store_lanes_of(p, block, rows, block.output_lanes(part * block.lanes, 1), result + part * block.width);
    return;
  }
  if (p.bias && block.closes_group) {
    const T* bias = p.bias + block.first_output;
    for (int64_t r = 0; r < rows.count; ++r) {
      T* __restrict row = result + r * p.tile.outputs;
      for (int64_t o = 0; o < outputs; ++o) row[o] += bias[o];
    }
  }
  store_lanes_of(p, block, rows, identity_map(outputs), result);
}

// Adds the product of a block's columns and its weight to the result.
template <typename T, typename S>
void multiply_columns(const Params<T, S>& p, const ChannelBlock& block, int64_t rows,
                      const Panels<S>& columns, T* result) {
  constexpr int64_t panel = kNR<S>;
  const int64_t depth = packed_depth<T, S>(p.shape, block);
  // the weight's last rows are zero, but the columns must not be NaN
  for (int64_t last = p.shape.taps * block.count; last < depth; ++last)
    for (int64_t r = 0; r < rows; ++r) *columns.at(r, last) = 0;
  const LeftOperand<S, Constant<panel>, Constant<1>> left{columns.data, {}, {}, panel, columns.stride};
  gemm<T, S>(left, rows, p.weight + block.weight_at, depth, block.outputs, result, p.tile.outputs, kNR<T>,
             !block.opens_group);
}

template <typename T, typename S, int Rank>
struct ForwardScratch {
  Rows<T, Rank> rows;
  ForwardPoints<T, Rank>* table;  // [tap]
  Panels<S> columns;              // of narrow groups: [row][depth]
  T* result;                      // [row][outputs, padded to whole panels]
  T* bias;                        // of narrow groups, in the lanes of the result
  // Where pixels are the lanes: the columns. Of narrow groups over channels: the columns of some rows, [row][tap][width]
  Planes<T, kForwardRows> planes;

  ForwardScratch(Arena& arena, const Params<T, S>& p)
      : rows(Rows<T, Rank>::allocate(arena, p.tile.rows)),
        table(arena.take<ForwardPoints<T, Rank>>(p.shape.taps)),
        columns(arena.take<S>(Panels<S>::size_of(p.tile)), p.tile),
        result(arena.take<T>(p.tile.outputs * p.tile.rows)),
        bias(arena.take<T>(p.tile.outputs)),
        planes{arena.take<T>(p.over_pixels || p.narrow ? p.tile.depth * kForwardRows : 0)} {}
};

template <typename T, typename S, int Rank>
struct ForwardTile {
  const Params<T, S>& p;
  ForwardScratch<T, S, Rank> memory;
  // At first, all points are stored as whole ones. If an output is not finite, a pixel that does not count may be the cause:
  // the group of this output is computed again.
  bool whole = true;

  // Where pixels are the lanes: computes the columns as [row][depth] for narrow groups, else in panels.
  void transpose_samples(const ChannelBlock& block) const {
    const int64_t depth = p.shape.taps * block.width, rows = memory.rows.count;
    if constexpr (std::is_same_v<T, S>) {
      if (block.is_narrow())
        transpose(memory.planes.data, kForwardRows, memory.columns.data, block.depth, depth, rows);
      else
        memory.planes.to_panels(memory.columns, depth, rows);
    }
  }

  // bias: of narrow groups
  void set_bias(const ChannelBlock& block) const {
    const int64_t lanes = block.parts() * block.width;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t output =
          block.output_lanes(lane / block.width * block.lanes, 1).channel_of(lane % block.width);
      memory.bias[lane] = p.bias && output >= 0 ? p.bias[block.first_output + output] : 0;
    }
  }

  template <typename Columns>
  void multiply_narrow(const ChannelBlock& block, const Columns& columns, int64_t first, int64_t rows) const {
    const NarrowProduct<T, S, Columns> product{columns,       rows,
                                               p.shape.taps,  block.width / kLanes<T>,
                                               block.parts(), p.weight + block.weight_at,
                                               memory.bias,   memory.result + first * p.tile.outputs,
                                               p.tile.outputs};
    product.multiply_groups(block.lanes);
  }

  // Narrow groups, over channels. If few vectors would share a point, the columns of some rows are stored first.
  template <bool all_whole>
  void compute_narrow(const ChannelBlock& block) const {
    constexpr int64_t run = 16;
    const SampledColumns<T, S, Rank, all_whole> sampled(p, block, memory.rows, memory.table);
    const int64_t rows = memory.rows.count, taps = p.shape.taps, width = block.width;
    const int64_t ahead = kPixelsAhead * p.shape.stride[Rank - 1] * sampled.pixel_stride;
    if (block.lanes <= 2) return multiply_narrow(block, sampled, 0, rows);
    T* const columns = memory.planes.data;
    for (int64_t first = 0; first < rows; first += run) {
      const int64_t count = rows - first < run ? rows - first : run;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const auto point = sampled.at(tap, first + r);
          for (int64_t c = 0; c < width; c += kLanes<T>) {
            store(columns + (r * taps + tap) * width + c, point.template read<Vector<T>>(c));
            if constexpr (all_whole) __builtin_prefetch(point.from[kCorners<Rank> - 1] + ahead + c, 0, 3);
          }
        }
      multiply_narrow(block, StoredColumns<T>{columns, taps * width, width}, first, count);
    }
  }

  template <bool all_whole>
  void compute_block(const ChannelBlock& block) const {
    const auto sample_panels = [&](auto panel) {
      sample<T, S, Rank, decltype(panel), all_whole>(p, block, memory.rows, memory.table, memory.columns);
    };
    if (block.is_narrow()) set_bias(block);
    if (p.over_pixels) {
      if constexpr (std::is_same_v<T, S>)
        sample_over_pixels<T, Rank, all_whole>(p, block, memory.rows, *memory.table, memory.planes);
      transpose_samples(block);
      if (block.is_narrow())
        multiply_narrow(block, StoredColumns<S>{memory.columns.data, block.depth, block.width}, 0,
                        memory.rows.count);
    } else if (block.is_narrow()) {
      compute_narrow<all_whole>(block);
    } else {
      has_whole_panels(block, kNR<S>) ? sample_panels(Whole<S>{}) : sample_panels(Vector<T>{});
    }
    if (!block.is_narrow())
      multiply_columns<T, S>(p, block, memory.rows.count, memory.columns, memory.result);
  }

  void compute() {
    for (int axis = 0; axis < Rank; ++axis) whole &= p.shape.in[axis] > 1;
    const ChannelBlock* sampled = nullptr;  // the block that the table was computed for
    for (int64_t i = p.blocks.begin, group_begin = i; i < p.blocks.end; ++i) {
      const ChannelBlock& block = p.blocks.data[i];
      if (!p.over_pixels && !(sampled && block.points == sampled->points))
        compute_sampling_table(p.shape, p.offset_mask, block.points, memory.rows, memory.table, whole);
      sampled = &block;
      if (i == p.blocks.begin && !block.opens_group)
        load_group<T, S, Rank>(p, block, memory.rows, memory.result);
      whole ? compute_block<true>(block) : compute_block<false>(block);
      if (i + 1 < p.blocks.end && !block.closes_group) continue;
      const int64_t outputs = block.is_narrow() ? block.parts() * block.width : block.outputs;
      if (whole && !all_finite<T>(memory.result, p.tile.outputs, memory.rows.count, outputs)) {
        whole = false, sampled = nullptr, i = group_begin - 1;
        continue;
      }
      store_result<T, S, Rank>(p, block, memory.rows, memory.result);
      group_begin = i + 1;
    }
  }
};

template <typename T, typename S, int Rank>
void compute_tile_of(const Params<T, S>& p, int64_t first, int64_t rows, char* scratch) {
  Arena arena{scratch};
  ForwardTile<T, S, Rank> tile{p, {arena, p}};
  tile.memory.rows.set(p.shape, p.input, first, rows);
  tile.compute();
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
    kNR<S>, suits, scratch_bytes<T, S>, pack_forward<T, S>, compute_tile<T, S>, transpose<S>, to_lanes<S>};

}  // namespace

const StoredKernelTable<DeformConvForward>& deform_conv_forward_kernels() {
  static const StoredKernelTable<DeformConvForward> kernels{
      {DCNZOO_FLOAT_KERNELS(deform_conv_forward_kernels, kernels_of<float>),
       DCNZOO_DOUBLE_KERNELS(deform_conv_forward_kernels, kernels_of<double>)},
      DCNZOO_BFLOAT16_KERNELS(kernels_of<float, BFloat16Bits>)};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
