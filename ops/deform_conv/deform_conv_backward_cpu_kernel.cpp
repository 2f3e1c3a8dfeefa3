// The kernels of deform_conv's backward on the CPU. walk.h describes what they do.
#include "walk.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S>
int64_t tile_bytes(const BackwardParams<T, S>& p) {
  return dispatch_rank(p.shape.rank, [&](auto rank) { return bytes_of<BackwardMemory<T, S, rank()>>(p); });
}

template <typename T, typename S>
void compute_tile(const BackwardParams<T, S>& p, const TileOfBlock& tile, char* memory,
                  const AddInTurn& add_in_turn) {
  dispatch_rank(p.shape.rank,
                [&](auto rank) { BackwardTile<T, S, rank()>(p, tile, {memory}).compute(add_in_turn); });
}

template <typename T, typename S = T>
constexpr DeformConvBackward<T, S> kernels_of{kNR<S>,
                                              kDepthStep<T, S>,
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
