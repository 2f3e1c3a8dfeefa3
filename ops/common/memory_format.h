// Channels-last maps, for which the stable Tensor has no functions.
#pragma once

#include "tensor.h"

namespace dcnzoo {

// [N, C, *size] whose memory is [N, *size, C]
inline bool is_channels_last(const Tensor& tensor) {
  int64_t stride = tensor.size(1);
  if (tensor.stride(1) != 1) return false;
  for (int64_t axis = tensor.dim() - 1; axis >= 2; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
    stride *= tensor.size(axis);
  }
  return tensor.size(0) == 1 || tensor.stride(0) == stride;
}

// Whether an operator returns maps in channels-last format: if its input has this format and is not also contiguous.
// As in torch, 1-D maps have only one format.
inline bool wants_channels_last(const Tensor& input) {
  return input.dim() > 3 && !input.is_contiguous() && is_channels_last(input);
}

// An uninitialised tensor of these sizes whose memory is channels last.
inline Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes,
                                std::optional<ScalarType> type = std::nullopt) {
  std::vector<int64_t> order{sizes[0]};
  order.insert(order.end(), sizes.begin() + 2, sizes.end());
  order.push_back(sizes[1]);
  Tensor tensor = torch::stable::new_empty(like, order, type ? *type : like.scalar_type());
  for (int64_t axis = int64_t(sizes.size()) - 1; axis > 1; --axis)
    tensor = torch::stable::transpose(tensor, axis - 1, axis);
  return tensor;
}

}  // namespace dcnzoo
