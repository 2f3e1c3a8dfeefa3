// The interface of the CPU kernels (no torch, compiled once per instruction set) to deform_conv_*_cpu.cpp
// (torch: checks, memory, threads).
//
// T is the type of the computation. S is the storage type of maps, weights and columns: T, or bfloat16 (as its bits) if
// the CPU can multiply it.
#pragma once

#include <functional>

#include "layouts.h"

namespace dcnzoo {

template <typename T, typename S = T>
struct DeformConvParams {
  DeformConvShapes shape;
  int64_t images;  // of this pass
  ChannelBlocks blocks;
  TileSizes tile;
  InputMaps<S> input;  // the backward reads its data for all gradients except the input's
  StoredOffsetMask<T> offset_mask;

  DCNZOO_HD Way way() const { return blocks.data->way; }
};

template <typename T, typename S = T>
struct DeformConvForwardParams : DeformConvParams<T, S> {
  const S* weight;  // packed
  const T* bias;    // [out_channels], or null
  OutputMaps<S> output;
};

template <typename T, typename S = T>
struct DeformConvBackwardParams : DeformConvParams<T, S> {
  const S* weight;  // packed
  OutputMaps<const S> grad_output;
  T* grad_input;   // like input, accumulated, or null
  T* grad_weight;  // like weight, accumulated, or null
  OffsetMask<T> grad_offset_mask;
  // With several threads per block, a separate loop adds to the input's gradient, and the weight's gradient is added in
  // parts of the outputs (1 if groups are narrow). Both shorten the steps that the threads do in turn.
  bool input_apart;
  int64_t weight_parts;
  // If blocks share points, each writes its own gradients: [block of the pass][PointChannels][images · out_pixels]
  T* grad_offset_mask_of_blocks;
};

// Some output pixels, counted over the images, of a block
struct TileOfBlock {
  int64_t block;
  int64_t first, rows;
};

// The invariant of the backward: no two blocks write the same element of the gradients of input and weight, and the
// tiles of a block add to them in the order of the tiles. So the sums have the same bits for every number of threads.
// AddInTurn does a step of a tile after the same step of the previous tile.
using AddInTurn = std::function<void(int64_t step, const std::function<void()>& add)>;

// The steps of a tile: one adds to the input's gradient, and one to each part of the weight's.
struct TileSteps {
  static constexpr int64_t input = 0;
  static DCNZOO_HD int64_t weight(int64_t part) { return 1 + part; }
  static DCNZOO_HD int64_t count(int64_t weight_parts) { return 1 + weight_parts; }
};

template <typename T, typename S = T>
struct DeformConvForward {
  int64_t panel;                                                // columns of a GEMM panel
  bool (*suits)(int64_t channels);                              // whether S is faster than float
  int64_t (*tile_bytes)(const DeformConvForwardParams<T, S>&);  // the memory of a tile
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Computes output pixels [first, first + rows), counted over the images.
  void (*compute_tile)(const DeformConvForwardParams<T, S>&, int64_t first, int64_t rows, char* memory);
  // [rows][columns] -> [columns][rows]
  void (*transpose)(const S* from, int64_t from_stride, S* to, int64_t to_stride, int64_t rows,
                    int64_t columns);
  // Copies at most kStretch pixels of a map, [channels][stride] or [pixels][stride], to [pixels][width], to_stride apart.
  void (*to_lanes)(const LaneMap& lanes, const S* from, int64_t stride, bool channels_last, S* to,
                   int64_t width, int64_t to_stride, int64_t pixels);
};

template <typename T, typename S = T>
struct DeformConvBackward {
  int64_t panel;       // as in the forward
  int64_t depth_step;  // the depth of a GEMM is a multiple of it
  int64_t (*tile_bytes)(const DeformConvBackwardParams<T, S>&);
  void (*pack)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const WeightOf<const S>&,
               S* packed);
  // Adds a tile's part to all gradients.
  void (*compute_tile)(const DeformConvBackwardParams<T, S>&, const TileOfBlock&, char* memory,
                       const AddInTurn&);
  void (*unpack_weight_gradient)(const DeformConvShapes&, const ChannelBlock&, const Piece&, const T* packed,
                                 const WeightOf<S>& grad_weight);
  // Stores at most kStretch pixels, [pixels][width], from_stride apart, as [channels][stride] or [pixels][stride].
  void (*from_lanes)(const LaneMap& lanes, const T* from, int64_t width, int64_t from_stride, S* to,
                     int64_t stride, bool channels_last, int64_t pixels);
  // Sums one of PointChannels of an image's grad_offset_mask_of_blocks over the blocks that share points.
  void (*sum_offset_mask)(const DeformConvBackwardParams<T, S>&, int64_t image, int64_t channel);
};

// The kernels of bfloat16 are null if the CPU cannot multiply it. They do not support samples over pixels:
// multiplies_bfloat16 in deform_conv_cpu.h.
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvForward>, deform_conv_forward_kernels)
DCNZOO_DECLARE_MATRIX_KERNELS(StoredKernelTable<DeformConvBackward>, deform_conv_backward_kernels)

}  // namespace dcnzoo
