// The products of a tile's columns and of the output's gradient. Those of narrow groups are in narrow.h. Included by
// *_cpu_kernel.cpp only.
#pragma once

#include "../common/gemm.h"
#include "narrow.h"
#include "weight_packing.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

// The number of columns of a panel, without the padding at the end of the last panel.
template <typename T>
int64_t columns_of(const ChannelBlock& block, int64_t panel) {
  const int64_t left = block.columns - panel * kNR<T>;
  return left < kNR<T> ? left : kNR<T>;
}

// Forward: adds the product of a block's columns and its weight to the result.
template <typename T, typename S, int Rank>
void multiply_columns(const ForwardParams<T, S>& p, const ChannelBlock& block,
                      const ForwardMemory<T, S, Rank>& tile) {
  constexpr int64_t panel = kNR<S>;
  const int64_t depth = forward_depth<T, S>(block), rows = tile.rows.count;
  // the weight's last rows are zero, but the columns must not be NaN
  for (int64_t last = block.columns; last < depth; ++last)
    for (int64_t r = 0; r < rows; ++r) *tile.columns.at(r, last) = 0;
  const LeftOperand<S, Constant<panel>, Constant<1>> left{
      tile.columns.data, {}, {}, panel, tile.columns.stride};
  gemm<T, S>(left, rows, p.weight + block.weight_at, depth, block.outputs, tile.result, p.tile.outputs,
             kNR<T>, !block.opens_group);
}

// Backward: the output's gradient as the left operand of products of bfloat16, [row][output]. It is read in place if it
// is channels last and needs no padding (other outputs follow), else from a copy.
template <typename T, typename S, int Rank>
LeftOperand<S, int64_t, Constant<1>> gradient_rows(const BackwardParams<T, S>& p, const ChannelBlock& block,
                                                   const BackwardMemory<T, S, Rank>& tile) {
  const int64_t rows = tile.rows.count, depth = backward_depth<T, S>(block), padding = depth - block.outputs;
  if (p.grad_output.channels_last && padding == 0)
    return {p.grad_output.at(p.shape, tile.rows.image, block.first_output, tile.rows.pixel),
            p.shape.out_channels,
            {},
            depth,
            0};
  const int64_t stride = BackwardMemory<T, S, Rank>::pair_stride(p);
  transpose(tile.gradient, kBackwardRows, tile.pairs, stride, block.outputs, rows);
  for (int64_t r = 0; padding > 0 && r < rows; ++r)
    std::memset(tile.pairs + r * stride + block.outputs, 0, padding * sizeof(S));
  return {tile.pairs, stride, {}, depth, 0};
}

// Backward: the columns' gradient, which is the output's gradient times the weight.
template <typename T, typename S, int Rank>
void multiply_by_weight(const BackwardParams<T, S>& p, const ChannelBlock& block,
                        const BackwardMemory<T, S, Rank>& tile) {
  if (block.is_narrow())
    return NarrowGradient<T, S>(p, block, tile)
        .multiply_by_weight(narrow_weight<const T>(p.weight, block), tile.gradients);
  const int64_t outputs = backward_depth<T, S>(block);
  const auto multiply = [&](const auto& left) {
    for (int64_t panel = 0; panel < block.depth / kNR<T>; ++panel)
      gemm<T, S>(left, tile.rows.count, p.weight + block.weight_at + panel * outputs * kNR<S>, outputs,
                 columns_of<T>(block, panel), tile.gradients.at(0, panel * kNR<T>), kNR<T>, 0, false);
  };
  if constexpr (kPair<T, S> > 1)
    multiply(gradient_rows(p, block, tile));
  else
    multiply(LeftOperand<S, Constant<1>, Constant<kBackwardRows>>{tile.gradient, {}, {}, outputs, 0});
}

// Arranges the columns for products of bfloat16: [row][kNR] -> [row / 2][kNR][2] in every panel. Columns and gradient
// are padded with rows of zeros to a multiple of kDepthStep.
template <typename T, typename S, int Rank>
void pair_columns(const ChannelBlock& block, const BackwardMemory<T, S, Rank>& tile) {
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

// Backward: adds the output's gradient, [output][row], times the columns, for part `index` of the outputs.
template <typename T, typename S, int Rank>
void add_weight_gradient(const BackwardParams<T, S>& p, const ChannelBlock& block,
                         const BackwardMemory<T, S, Rank>& tile, int64_t index) {
  T* const to = p.grad_weight + block.weight_at;
  if (block.is_narrow()) return NarrowGradient<T, S>(p, block, tile).multiply_by_columns(tile.columns, to);
  const int64_t rows = round_up(tile.rows.count, kDepthStep<T, S>);
  const int64_t part = ceil_div(block.outputs, p.weight_parts), first = index * part;
  const int64_t outputs = block.outputs - first < part ? block.outputs - first : part;
  for (int64_t panel = 0; panel < block.depth / kNR<S>; ++panel) {
    const S* const from = tile.gradient + first * kBackwardRows;
    gemm<T, S>(LeftOperand<S, Constant<kBackwardRows>, Constant<1>>{from, {}, {}, rows, 0}, outputs,
               tile.columns.at(0, panel * kNR<S>), rows, columns_of<T>(block, panel),
               to + (panel * block.outputs + first) * kNR<T>, kNR<T>, 0, true);
  }
}

}  // namespace
}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
