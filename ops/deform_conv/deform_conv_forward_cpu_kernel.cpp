// The forward of deformable convolution on the CPU. docs/performance.md has a diagram.
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

// Computes the columns of a tile for a block of channels: in steps while other columns are multiplied, which hides the
// time that the samples take to arrive from the caches, and the rest at once.
template <typename T, typename S, int Rank>
class Sampler {
 public:
  // Other vectors leave no registers free beside a product; other ranks would only add to the time of compilation.
  static constexpr bool kSteps = kVectorBytes == 64 && Rank == 2;

  Sampler() = default;
  Sampler(const Params<T, S>& p, const ChannelBlock& block, const Rows<T, Rank>& rows,
          const SamplingTable<T, Rank, false>& table, S* columns)
      : taps_(p.shape.taps),
        channels_(block.count),
        pixel_stride_(p.input.pixel_stride(block)),
        panel_stride_(panel_stride<S>(p.tile)),
        ahead_(kPixelsAhead * p.shape.stride[Rank - 1] * pixel_stride_ * int64_t(sizeof(S))),
        rows_(rows),
        table_(table),
        maps_(p.input.data + p.input.place_of(block, p.shape.in_pixels)),
        columns_(columns),
        rows_of_steps_(kSteps && channels_ % kNR<S> == 0 ? rows.count : 0),
        taps_left_(taps_) {
    if (rows_of_steps_ > 0) start_row();
  }

  // Computes a panel's columns of one point, if the point is whole.
  DCNZOO_INLINE void step() {
    if (row_ >= rows_of_steps_) return;
    if (*index_ >= 0) {
      Vector<T> value[2]{};
      const S* from = nullptr;
#pragma GCC unroll 4
      for (int corner = 0; corner < kCorners<Rank>; ++corner) {
        from = map_ + int64_t(index_[corner * rows_.stride]) * pixel_stride_;
        const T weight = weight_[corner * rows_.stride];
        value[0] += weight * load_lanes<Vector<T>>(from);
        value[1] += weight * load_lanes<Vector<T>>(from + kLanes<T>);
      }
      store_lanes(to_, value[0]);
      store_lanes(to_ + kLanes<T>, value[1]);
      const uintptr_t later = reinterpret_cast<uintptr_t>(from) + ahead_;
      __builtin_prefetch(reinterpret_cast<const void*>(later), 0, 2);
      if (sizeof(S) > 2) __builtin_prefetch(reinterpret_cast<const void*>(later + 64), 0, 2);
    }
    map_ += kNR<S>, to_ += panel_stride_;
    if (map_ != map_end_) return;
    map_ -= channels_;
    index_ += kCorners<Rank> * rows_.stride, weight_ += kCorners<Rank> * rows_.stride;
    if (--taps_left_ == 0 && ++row_ < rows_of_steps_) start_row();
  }

  // Computes what the steps have not.
  void finish() {
    for (int64_t r = 0; r < rows_.count; ++r)
      for (int64_t tap = 0; tap < taps_; ++tap) {
        const bool whole = table_.index[tap * kCorners<Rank> * rows_.stride + r] >= 0;
        const bool done = r < row_ || (r == row_ && tap < taps_ - taps_left_);
        if (!done || !whole) sample(r, tap, whole);
      }
  }

 private:
  static constexpr int64_t kPixelsAhead = 8;  // that are fetched into the L2 cache

  void start_row() {
    index_ = table_.index + row_, weight_ = table_.weight + row_, taps_left_ = taps_;
    map_ = maps_ + rows_.map[row_], map_end_ = map_ + channels_;
    to_ = columns_ + row_ * kNR<S>;
  }

  void sample(int64_t r, int64_t tap, bool whole) {
    constexpr int corners = kCorners<Rank>;
    const S* map = maps_ + rows_.map[r];
    const int64_t first = tap * corners * rows_.stride + r;
    if (whole) {
      const S* from[corners];
      T weight[corners];
      for (int corner = 0; corner < corners; ++corner) {
        const int64_t at = first + corner * rows_.stride;
        from[corner] = map + int64_t(table_.index[at]) * pixel_stride_;
        weight[corner] = table_.weight[at];
      }
      each_column<T>(tap, channels_, r, panel_stride_, [&](auto value, int64_t c, int64_t at) {
        for (int corner = 0; corner < corners; ++corner)  // summed as in step(), so that both round alike
          value += weight[corner] * load_lanes<decltype(value)>(from[corner] + c);
        store_lanes(columns_ + at, value);
      });
    } else {
      const InsideCorners<corners> inside([&](int c) { return table_.index[first + c * rows_.stride]; });
      const T rest = table_.rest[tap * rows_.stride + r];
      const S* from[corners];
      T weight[corners];
      for (int i = 0; i < inside.count; ++i) {
        from[i] = map + inside.index[i] * pixel_stride_;
        weight[i] = table_.weight[first + inside.corner[i] * rows_.stride];
      }
      each_column<T>(tap, channels_, r, panel_stride_, [&](auto value, int64_t c, int64_t at) {
        for (int i = 0; i < inside.count; ++i) value += weight[i] * load_lanes<decltype(value)>(from[i] + c);
        store_lanes(columns_ + at, value * rest);
      });
    }
  }

  int64_t taps_ = 0, channels_ = 0, pixel_stride_ = 0, panel_stride_ = 0, ahead_ = 0;
  Rows<T, Rank> rows_{};
  SamplingTable<T, Rank, false> table_{};
  const S* maps_ = nullptr;
  S* columns_ = nullptr;
  // The next step's row, point, channels and columns
  int64_t rows_of_steps_ = 0, row_ = 0, taps_left_ = 0;
  const IntegerOf<T>* index_ = nullptr;
  const T* weight_ = nullptr;
  const S *map_ = nullptr, *map_end_ = nullptr;
  S* to_ = nullptr;
};

// Outputs [begin, end) of a block, in whole panels except for the last.
struct Outputs {
  int64_t begin, end;
};

// Loads a group's sums over the blocks of earlier passes. (Only S = T has several passes.)
template <typename T, typename S, int Rank>
void load_group(const Params<T, S>& p, const ChannelBlock& block, const Outputs& outputs,
                const Rows<T, Rank>& rows, T* result) {
  const int64_t padded = p.tile.outputs, first = block.first_output + outputs.begin;
  if constexpr (std::is_same_v<S, T>)
    rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
      const T* from = p.output.data + (image * p.shape.out_channels + first) * p.shape.out_pixels + pixel;
      transpose(from, p.shape.out_pixels, result + begin * padded + outputs.begin, padded,
                outputs.end - outputs.begin, end - begin);
    });
}

// Stores the sums of a group. If they are complete, the bias is added first.
template <typename T, typename S, int Rank>
void store_group(const Params<T, S>& p, const ChannelBlock& block, const Outputs& of,
                 const Rows<T, Rank>& rows, T* result, T* turned) {
  const int64_t first = block.first_output + of.begin, outputs = of.end - of.begin, padded = p.tile.outputs;
  result += of.begin;
  if (p.bias && block.closes_group) {
    const T* bias = p.bias + first;
    for (int64_t r = 0; r < rows.count; ++r) {
      T* __restrict row = result + r * padded;
      for (int64_t o = 0; o < outputs; ++o) row[o] += bias[o];
    }
  }
  const auto copy = [](const T* __restrict from, S* __restrict to, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store_lanes(to + i, load(from + i));
    for (; i < count; ++i) store_lanes(to + i, from[i]);
  };
  rows.each_image(p.shape.out_pixels, [&](int64_t begin, int64_t end, int64_t image, int64_t pixel) {
    if (p.output.channels_last) {
      for (int64_t r = begin; r < end; ++r)
        copy(result + r * padded,
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
        copy(turned + o * p.tile.rows, to + o * p.shape.out_pixels, end - begin);
    }
  });
}

// Adds the block's products to the result, group by group. A group is written in whole panels; the next group
// overwrites the padding after its outputs.
template <typename T, typename S, typename Other>
void multiply_groups(const Params<T, S>& p, const ChannelBlock& block, const Outputs& of, int64_t rows,
                     const S* columns, T* result, Other& other) {
  constexpr int64_t panel = kNR<S>;
  const int64_t stride = panel_stride<S>(p.tile), channels = block.count / block.groups;
  const int64_t outputs = block.outputs / block.groups, depth = block.depth / block.groups;
  const int64_t panels = ceil_div(outputs, panel);
  // parts of the outputs: only of a single group
  const int64_t first = block.groups == 1 ? of.begin / panel : 0;
  const int64_t end = block.groups == 1 ? ceil_div(of.end, panel) : panels;
  // a single group uses all columns; each of several groups uses its channels of every tap
  const int64_t width = block.groups == 1 ? panel : channels;
  const int64_t width_stride = block.groups == 1 ? stride : block.count / panel * stride;
  for (int64_t group = 0; group < block.groups; ++group) {
    const int64_t column = group * channels;
    const LeftOperand<S, Constant<panel>, Constant<1>> left{
        columns + column / panel * stride + column % panel, {}, {}, width, width_stride};
    gemm<T, S>(left, rows, p.weight + block.weight_at + (group * panels + first) * depth * panel, depth,
               end - first, result + group * outputs + first * panel, p.tile.outputs, kNR<T>,
               !block.opens_group, other);
  }
}

template <typename T, typename S, int Rank>
struct ForwardScratch {
  Rows<T, Rank> rows[2];
  SamplingTable<T, Rank, false> table;
  S* columns[2];  // panels of [row][kNR]
  T* result;      // [row][outputs, padded to whole panels]
  T* turned;      // the transposed result, [output][row], before its conversion to a narrower type

  ForwardScratch(Arena& arena, const Params<T, S>& p)
      : rows{Rows<T, Rank>::allocate(arena, p.tile.rows), Rows<T, Rank>::allocate(arena, p.tile.rows)},
        table(SamplingTable<T, Rank, false>::allocate(arena, p.shape.taps, p.tile.rows)),
        columns{arena.take<S>(columns_size<S>(p.tile)), arena.take<S>(columns_size<S>(p.tile))},
        result(arena.take<T>(p.tile.outputs * p.tile.rows)),
        turned(arena.take<T>(sizeof(S) == sizeof(T) ? 0 : p.tile.outputs * p.tile.rows)) {}
};

// A block of channels of a tile, and the outputs to compute.
template <typename T, int Rank>
struct Step {
  const ChannelBlock* block;
  Rows<T, Rank>* rows;
  int64_t part;
};

// Computes tiles, block by block. While a block is multiplied, the next one is sampled.
template <typename T, typename S, int Rank>
class Forward {
 public:
  Forward(const Params<T, S>& p, const TakeTask& take, char* scratch)
      : p_(p), take_(take), arena_{scratch}, memory_(arena_, p) {}

  void run() {
    while (next_tile(false)) {
      start_sampling();
      sampler_.finish();
      for (bool more = true; more;) {
        const Step<T, Rank> step = next_;
        const S* const columns = memory_.columns[columns_];
        columns_ = 1 - columns_;
        more = step.block + 1 < end_ ? (++next_.block, true) : next_tile(true);
        sampler_ = {};
        if (more) start_sampling(&step);
        multiply(step, columns);
        sampler_.finish();
      }
    }
  }

 private:
  bool next_tile(bool early) {
    int64_t index;
    if (!take_(index, early)) return false;
    const int64_t all_rows = p_.images * p_.shape.out_pixels, first = index / p_.output_parts * p_.tile.rows;
    next_ = {begin_, &memory_.rows[next_.rows == memory_.rows], index % p_.output_parts};
    next_.rows->set(p_.shape, p_.input, first,
                    all_rows - first < p_.tile.rows ? all_rows - first : p_.tile.rows);
    return true;
  }

  // before: the step whose points are in the table
  void start_sampling(const Step<T, Rank>* before = nullptr) {
    const ChannelBlock& block = *next_.block;
    if (!before || next_.rows != before->rows || block.offset_group != before->block->offset_group ||
        block.mask_group != before->block->mask_group)
      compute_sampling_table(p_.shape, p_.offset_mask, block, *next_.rows, memory_.table);
    S* const columns = memory_.columns[columns_];
    if (!p_.shape.is_depthwise())
      zero_padding_columns(p_.tile, p_.shape.taps, block, next_.rows->count, columns);
    sampler_ = Sampler<T, S, Rank>(p_, block, *next_.rows, memory_.table, columns);
  }

  void multiply(const Step<T, Rank>& step, const S* columns) {
    const ChannelBlock& block = *step.block;
    const Rows<T, Rank>& rows = *step.rows;
    const int64_t width = round_up(ceil_div(block.outputs, p_.output_parts), kNR<S>);
    const int64_t first = step.part * width, last = first + width;
    const Outputs outputs{first, block.outputs < last ? block.outputs : last};
    if (step.block == begin_ && !block.opens_group)
      load_group<T, S, Rank>(p_, block, outputs, rows, memory_.result);
    if (p_.shape.is_depthwise()) {
      const DepthwiseTile depthwise{p_.shape.taps, block.count, rows.count, panel_stride<S>(p_.tile),
                                    p_.tile.outputs};
      depthwise_forward<T, S>(depthwise, columns, p_.weight + block.weight_at, memory_.result);
    } else {
      const auto multiply_beside = [&](auto& other) {
        multiply_groups<T, S>(p_, block, outputs, rows.count, columns, memory_.result, other);
      };
      NoWork nothing;
      if constexpr (Sampler<T, S, Rank>::kSteps)
        multiply_beside(sampler_);
      else
        multiply_beside(nothing);
    }
    if (step.block + 1 == end_ || block.closes_group)
      store_group<T, S, Rank>(p_, block, outputs, rows, memory_.result, memory_.turned);
  }

  const Params<T, S>& p_;
  const TakeTask& take_;
  const ChannelBlock* const begin_ = p_.blocks.data + p_.blocks.begin;
  const ChannelBlock* const end_ = p_.blocks.data + p_.blocks.end;
  Arena arena_;
  ForwardScratch<T, S, Rank> memory_;
  Step<T, Rank> next_{};
  int columns_ = 0;  // of the next step
  Sampler<T, S, Rank> sampler_;
};

template <typename T, typename S>
int64_t scratch_bytes(const Params<T, S>& p) {
  return dispatch_rank(p.shape.rank, [&](auto rank) { return bytes_of<ForwardScratch<T, S, rank()>>(p); });
}

template <typename T, typename S>
void forward(const Params<T, S>& p, const TakeTask& take, char* scratch) {
  dispatch_rank(p.shape.rank, [&](auto rank) { Forward<T, S, rank()>(p, take, scratch).run(); });
}

template <typename T, typename S = T>
constexpr DeformConvForward<T, S> kernels_of{kNR<S>, scratch_bytes<T, S>, pack_forward<T, S>, forward<T, S>,
                                             transpose<S>};

}  // namespace

const DeformConvKernels<DeformConvForward>& deform_conv_forward_kernels() {
  static const DeformConvKernels<DeformConvForward> kernels{
      kernels_of<float>, DCNZOO_DOUBLE_KERNELS(deform_conv_forward_kernels, kernels_of<double>),
#if defined(DCNZOO_MULTIPLIES_BFLOAT16)
      kernels_of<float, BFloat16Bits>
#else
      {}
#endif
  };
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
