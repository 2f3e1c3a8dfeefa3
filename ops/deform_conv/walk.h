// The walk of deform_conv on the CPU: what happens to a tile of output pixels, one block of channels after another.
//
//   pass      images and blocks whose copies the caches hold   deform_conv_{forward,backward}_cpu.cpp, channel_blocks.h
//   tile      some output pixels, the task of a thread         here: ForwardTile, BackwardTile; tile_memory.h: its layouts
//   block     channels that are computed together              ChannelBlock in deform_conv_cpu_kernel.h
//   points    the pixels around them, and weights              sampling_table.h
//   columns   samples at the points of all taps                samples.h; sample_backward.h, which gives gradients, too
//   product   columns · weight                                 products.h with ../common/gemm.h; narrow groups: narrow.h
//   map       of input, output and gradients                   maps.h
//
// Samples are computed in one of three ways, of which the shapes decide (channel_blocks.h):
//   over channels         the lanes of a vector are channels at one point; the columns are written as Panels
//   over pixels           the lanes are the points of neighbouring pixels; the columns are Planes, which become Panels
//   where they are read   depthwise and groups of 2: the product reads SampledColumns, which are not stored
// Other narrow groups read NarrowColumns, of a few rows at a time.
#pragma once

#include "maps.h"
#include "products.h"
#include "sample_backward.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S, int Rank>
struct ForwardTile {
  const ForwardParams<T, S>& p;
  ForwardMemory<T, S, Rank> memory;
  // At first, all points are stored as whole ones. If an output is not finite, a pixel that does not count may be the cause:
  // the group of this output is computed again.
  bool whole = true;
  const ChannelBlock* sampled = nullptr;  // the block that the table was computed for

  ForwardTile(const ForwardParams<T, S>& p, int64_t first, int64_t rows, Arena arena)
      : p(p), memory(arena, p) {
    memory.rows.set(p.shape, p.input, first, rows);
  }

  void compute() {
    for (int axis = 0; axis < Rank; ++axis) whole &= p.shape.in[axis] > 1;
    for (int64_t begin = p.blocks.begin, end; begin < p.blocks.end; begin = end) {
      for (end = begin + 1; end < p.blocks.end && !p.blocks.data[end - 1].closes_group;) ++end;
      const ChannelBlock& last = p.blocks.data[end - 1];
      const int64_t outputs = last.is_narrow() ? last.parts() * last.width : last.outputs;
      compute_group(begin, end);
      if (whole && !all_finite<T>(memory.result, p.tile.outputs, memory.rows.count, outputs)) {
        whole = false, sampled = nullptr;
        compute_group(begin, end);
      }
      store_result(p, last, memory);
    }
  }

  // The sums of a group over its blocks [begin, end)
  void compute_group(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ChannelBlock& block = p.blocks.data[i];
      if (!p.over_pixels && !(sampled && block.points == sampled->points))
        compute_sampling_table(p.shape, p.offset_mask, block.points, memory.rows, memory.table, whole);
      sampled = &block;
      if (i == p.blocks.begin && !block.opens_group) load_group(p, block, memory);
      whole ? compute_block<true>(block) : compute_block<false>(block);
    }
  }

  // Columns and product
  template <bool all_whole>
  void compute_block(const ChannelBlock& block) const {
    const int64_t rows = memory.rows.count, columns = p.shape.taps * block.width;
    const SampledColumns<T, S, Rank, all_whole> sampled(p, block, memory);
    const auto sample_rows = [&](auto panel, const auto& layout, int64_t begin, int64_t end) {
      sample<decltype(panel)>(sampled, p.shape, block.width, layout, begin, end);
    };
    if constexpr (std::is_same_v<T, S>)
      if (p.over_pixels) sample_over_pixels<T, Rank, all_whole>(p, block, memory);
    if (!block.is_narrow()) {
      if constexpr (std::is_same_v<T, S>)
        if (p.over_pixels) memory.planes.to_panels(memory.columns, columns, rows);
      if (!p.over_pixels)
        columns_are_even_odd<S>(block) ? sample_rows(Whole<S>{}, memory.columns, 0, rows)
                                       : sample_rows(Vector<T>{}, memory.columns, 0, rows);
      return multiply_columns(p, block, memory);
    }
    const NarrowProduct<T> product(p, block, memory);
    if (block.lanes <= 2 && !p.over_pixels) return product.multiply(sampled, 0, rows);
    // Few vectors would share a point: the columns of some rows are stored first.
    const NarrowColumns<T> stored{memory.narrow, block.depth, block.width};
    for (int64_t first = 0, end; first < rows; first = end) {
      end = rows - first < kRowsTogether ? rows : first + kRowsTogether;
      p.over_pixels ? memory.planes.to_rows(stored, columns, first, end)
                    : sample_rows(Vector<T>{}, stored, first, end);
      product.multiply(stored, first, end);
    }
  }
};

template <typename T, typename S, int Rank>
struct BackwardTile {
  const BackwardParams<T, S>& p;
  const int64_t index;  // of the block
  const ChannelBlock& block;
  BackwardMemory<T, S, Rank> memory;

  BackwardTile(const BackwardParams<T, S>& p, const TileOfBlock& tile, Arena arena)
      : p(p), index(tile.block), block(p.blocks.data[tile.block]), memory(arena, p) {
    memory.rows.set(p.shape, p.input, tile.first, tile.rows);
  }

  void compute(const AddInTurn& add_in_turn) const {
    const bool points = p.grad_offset_mask.offset || p.grad_offset_mask.mask;
    const bool input = p.grad_input != nullptr, columns = p.grad_weight != nullptr;
    const bool together = input && !p.input_apart;
    gather_gradient(p, block, memory);
    if (points || input) multiply_by_weight(p, block, memory);
    if (!p.over_pixels)
      compute_sampling_table(p.shape, p.offset_mask, block.points, memory.rows, memory.table);
    else if (points || input)
      memory.planes.from_panels(memory.gradients, block.depth, memory.rows.count);
    if (input) add_in_turn(0, [&] { sample(true, points && together, columns && together); });
    if (!together) sample(false, points, columns);
    if (points && !p.over_pixels) {
      for (int64_t tap = 0; tap < p.shape.taps; ++tap)
        offset_mask_gradients(p, memory, tap, memory.table[tap],
                              memory.dots + tap * kCorners<Rank> * kBackwardRows);
      store_offset_mask(p, index, block.points, memory);
    }
    if (!columns) return;
    if (p.over_pixels) memory.planes.to_panels(memory.gradients, block.depth, memory.rows.count);
    if constexpr (!std::is_same_v<T, S>)
      if (!block.is_narrow()) pair_columns(block, memory);
    for (int64_t part = 0; part < p.weight_parts; ++part)
      add_in_turn(1 + part, [&] { add_weight_gradient(p, block, memory, part); });
  }

  // Replaces the columns' gradient by the columns, if they are needed, and computes the gradients of the input, and of the
  // points of offset and mask.
  void sample(bool input, bool points, bool columns) const {
    if (!(input || points || columns)) return;
    if constexpr (std::is_same_v<T, S>)
      if (p.over_pixels) return sample_backward_over_pixels(p, index, memory, input, points, columns);
    columns_are_even_odd<S>(block) ? sample_by_panels<Whole<S>>(input, points, columns)
                                   : sample_by_panels<Vector<T>>(input, points, columns);
  }

  template <typename Panel>
  void sample_by_panels(bool input, bool points, bool columns) const {
    static constexpr decltype(&sample_backward<Panel, T, S, Rank, true, true, true>) samplers[2][2][2] = {
        {{nullptr, sample_backward<Panel, T, S, Rank, false, false, true>},
         {sample_backward<Panel, T, S, Rank, false, true, false>,
          sample_backward<Panel, T, S, Rank, false, true, true>}},
        {{sample_backward<Panel, T, S, Rank, true, false, false>,
          sample_backward<Panel, T, S, Rank, true, false, true>},
         {sample_backward<Panel, T, S, Rank, true, true, false>,
          sample_backward<Panel, T, S, Rank, true, true, true>}}};
    samplers[input][points][columns](p, block, memory);
  }
};

}  // namespace
}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
