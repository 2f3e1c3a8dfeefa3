// The walk of deform_conv on the CPU: what happens to a tile of output pixels, one block of channels after another.
//
//   pass     images and blocks whose copies the caches hold   deform_conv_{forward,backward}_cpu.cpp, channel_blocks.h
//   tile     some output pixels, the task of a thread         here: ForwardTile, BackwardTile; its layouts: tile_memory.h
//   block    channels that are computed together              ChannelBlock in layouts.h
//   points   the pixels around them, and weights              sampling_table.h
//   columns  samples at the points of all taps                samples.h; sample_backward.h, which gives gradients, too
//   product  columns · weight                                 products.h with ../common/gemm.h; narrow groups: narrow.h
//   map      of input, output and gradients                   maps.h
//
// A call takes one Way from samples to products (layouts.h); choose_way in channel_blocks.h says which one, and why.
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
  PointGroup table_points{-1, -1};  // those that memory.table has, at first none
  bool table_whole = false;

  ForwardTile(const ForwardParams<T, S>& p, int64_t first, int64_t rows, Arena arena)
      : p(p), memory(arena, p) {
    memory.rows.set(p.shape, p.input, first, rows);
  }

  void compute() {
    // At first, all points are stored as whole ones, which need two pixels on every axis. If an output is not finite, a pixel
    // that does not count may be the cause: its group is computed again, and the next groups are computed without whole points.
    bool whole = true;
    for (int axis = 0; axis < Rank; ++axis) whole &= p.shape.in[axis] > 1;
    for (int64_t begin = p.blocks.begin, end; begin < p.blocks.end; begin = end) {
      for (end = begin + 1; end < p.blocks.end && !p.blocks.data[end - 1].closes_group;) ++end;
      const ChannelBlock& last = p.blocks.data[end - 1];
      compute_group(begin, end, whole);
      if (whole && !all_finite<T>(memory.result, p.tile.outputs, memory.rows.count, last.result_row())) {
        whole = false;
        compute_group(begin, end, whole);
      }
      store_result(p, last, memory);
    }
  }

 private:
  // The sums of a group over its blocks [begin, end)
  void compute_group(int64_t begin, int64_t end, bool whole) {
    for (int64_t i = begin; i < end; ++i) {
      const ChannelBlock& block = p.blocks.data[i];
      if (!is_over_pixels(p.way())) update_table(block.points, whole);
      if (i == p.blocks.begin && !block.opens_group) load_group(p, block, memory);
      whole ? compute_block<true>(block) : compute_block<false>(block);
    }
  }

  // Blocks at the same points share the table.
  void update_table(const PointGroup& points, bool whole) {
    if (points == table_points && whole == table_whole) return;
    compute_sampling_table(p.shape, p.offset_mask, points, memory.rows, memory.table, whole);
    table_points = points, table_whole = whole;
  }

  // Columns and product
  template <bool whole>
  void compute_block(const ChannelBlock& block) const {
    const int64_t rows = memory.rows.count;
    const SampledColumns<T, S, Rank, whole> sampled(p, block, memory);
    const auto sample_rows = [&](auto panel, const auto& layout, int64_t begin, int64_t end) {
      sample<decltype(panel)>(sampled, p.shape, block.width, layout, begin, end);
    };
    switch (p.way()) {
      case Way::matrix:
        columns_are_even_odd<S>(block) ? sample_rows(Whole<S>{}, memory.columns, 0, rows)
                                       : sample_rows(Vector<T>{}, memory.columns, 0, rows);
        return multiply_columns(p, block, memory);
      case Way::narrow_unstored: return NarrowProduct<T>(p, block, memory).multiply(sampled, 0, rows);
      case Way::narrow:
        return multiply_stored(block, [&](const auto& stored, int64_t begin, int64_t end) {
          sample_rows(Vector<T>{}, stored, begin, end);
        });
      case Way::matrix_over_pixels:
      case Way::narrow_over_pixels:
        if constexpr (std::is_same_v<T, S>) compute_block_over_pixels<whole>(block);
    }
  }

  template <bool whole>
  void compute_block_over_pixels(const ChannelBlock& block) const {
    sample_over_pixels<T, Rank, whole>(p, block, memory);
    if (block.is_narrow())
      return multiply_stored(block, [&](const auto& stored, int64_t begin, int64_t end) {
        memory.planes.to_rows(stored, block.columns, begin, end);
      });
    memory.planes.to_panels(memory.columns, block.columns, memory.rows.count);
    multiply_columns(p, block, memory);
  }

  // The product of narrow groups. write(columns, begin, end) computes the columns of a few rows.
  template <typename Write>
  void multiply_stored(const ChannelBlock& block, const Write& write) const {
    const NarrowProduct<T> product(p, block, memory);
    const NarrowColumns<T> stored{memory.narrow, block.depth, block.width};
    for (int64_t begin = 0, end; begin < memory.rows.count; begin = end) {
      end = memory.rows.count - begin < kRowsTogether ? memory.rows.count : begin + kRowsTogether;
      write(stored, begin, end);
      product.multiply(stored, begin, end);
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
    const bool points = p.grad_offset_mask.any();
    const bool input = p.grad_input != nullptr, columns = p.grad_weight != nullptr;
    const bool together = input && !p.input_apart;
    const bool over_pixels = is_over_pixels(p.way());
    gather_gradient(p, block, memory);
    if (points || input) multiply_by_weight(p, block, memory);
    if (!over_pixels)
      compute_sampling_table(p.shape, p.offset_mask, block.points, memory.rows, memory.table);
    else if (points || input)
      memory.planes.from_panels(memory.gradients, block.depth, memory.rows.count);
    if (input)
      add_in_turn(TileSteps::input, [&] { sample({true, points && together, columns && together}); });
    if (!together && (points || columns)) sample({false, points, columns});
    if (points && !over_pixels) {
      for (int64_t tap = 0; tap < p.shape.taps; ++tap)
        offset_mask_gradients(p, memory, tap, memory.table[tap], memory.dots_of(tap));
      store_offset_mask(p, index, block.points, memory);
    }
    if (!columns) return;
    if (over_pixels) memory.planes.to_panels(memory.gradients, block.depth, memory.rows.count);
    if constexpr (!std::is_same_v<T, S>)
      if (!block.is_narrow()) pair_columns(block, memory);
    for (int64_t part = 0; part < p.weight_parts; ++part)
      add_in_turn(TileSteps::weight(part), [&] { add_weight_gradient(p, block, memory, part); });
  }

 private:
  // Replaces the columns' gradient by the columns, if they are needed, and computes the gradients of the input, and of
  // the points of offset and mask: over channels, the dots alone.
  void sample(SampleTargets targets) const {
    if constexpr (std::is_same_v<T, S>)
      if (is_over_pixels(p.way())) return sample_backward_over_pixels(p, index, memory, targets);
    columns_are_even_odd<S>(block) ? sample_over_channels<Whole<S>>(targets)
                                   : sample_over_channels<Vector<T>>(targets);
  }

  template <typename Panel>
  void sample_over_channels(SampleTargets targets) const {
    static constexpr decltype(&sample_backward<Panel, T, S, Rank, true, true, true>) samplers[2][2][2] = {
        {{nullptr, sample_backward<Panel, T, S, Rank, false, false, true>},
         {sample_backward<Panel, T, S, Rank, false, true, false>,
          sample_backward<Panel, T, S, Rank, false, true, true>}},
        {{sample_backward<Panel, T, S, Rank, true, false, false>,
          sample_backward<Panel, T, S, Rank, true, false, true>},
         {sample_backward<Panel, T, S, Rank, true, true, false>,
          sample_backward<Panel, T, S, Rank, true, true, true>}}};
    samplers[targets.input][targets.points][targets.columns](p, block, memory);
  }
};

}  // namespace
}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
