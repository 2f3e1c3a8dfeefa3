// Sizes of a deformable convolution, without torch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/host_device.h"

namespace dcnzoo {

template <int Rank>
struct ConvGeometry {
  int64_t in[Rank], out[Rank], kernel[Rank];
  int64_t stride[Rank], padding[Rank], dilation[Rank];
};

struct DeformConvShapes : ConvGeometry<3> {  // axes from rank on are unused
  int64_t rank, batch, channels, out_channels, groups;
  int64_t offset_groups, mask_groups;  // 0 where there is no offset or mask
  int64_t taps, in_pixels, out_pixels, im2col_step;

  DCNZOO_HD int64_t group_channels() const { return channels / groups; }
  DCNZOO_HD int64_t group_outputs() const { return out_channels / groups; }

  template <int Rank>
  ConvGeometry<Rank> geometry() const {
    ConvGeometry<Rank> result;
    for (int axis = 0; axis < Rank; ++axis) {
      result.in[axis] = in[axis], result.out[axis] = out[axis], result.kernel[axis] = kernel[axis];
      result.stride[axis] = stride[axis], result.padding[axis] = padding[axis];
      result.dilation[axis] = dilation[axis];
    }
    return result;
  }
};

// Calls function(rank) with the rank as a compile-time constant.
template <typename Function>
auto dispatch_rank(int64_t rank, const Function& function) {
  switch (rank) {
    case 1: return function(std::integral_constant<int, 1>());
    case 2: return function(std::integral_constant<int, 2>());
    default: return function(std::integral_constant<int, 3>());
  }
}

}  // namespace dcnzoo
