// Channels-last maps, for which the stable Tensor has no functions.
#pragma once

#include "tensor.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>

namespace dcnzoo {

// Whether the memory of a tensor [N, C, *size] is [N, *size, C].
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

// An uninitialised tensor of these sizes whose memory is channels last. It must not be a view of another tensor:
// autograd forbids changing in place, as ReLU(inplace=True) does, a view that a custom function returns.
inline Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes,
                                std::optional<ScalarType> type = std::nullopt) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t stride = std::max<int64_t>(sizes[1], 1);
  for (size_t axis = sizes.size() - 1; axis >= 2; --axis) {
    strides[axis] = stride;
    stride *= std::max<int64_t>(sizes[axis], 1);
  }
  strides[0] = stride;
  const auto dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type ? *type : like.scalar_type()));
  int32_t device;
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype,
                                                  device, like.get_device_index(), &made));
  return Tensor(made);
}

// An uninitialised tensor of these sizes, channels last or contiguous.
inline Tensor new_output(const Tensor& like, const std::vector<int64_t>& sizes, bool channels_last) {
  return channels_last ? new_channels_last(like, sizes) : torch::stable::new_empty(like, sizes);
}

}  // namespace dcnzoo
