#include "../common/tensor.h"

// output_mask of a backward: the differentiable tensors whose gradient is needed; the other gradients are empty.
STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "dcnv3(Tensor input, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int group, int group_channels, float offset_scale, bool remove_center) -> Tensor");
  m.def(
      "_dcnv3_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, int group, int group_channels, float offset_scale, "
      "bool remove_center, bool[3] output_mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "dcnv4(Tensor input, Tensor offset_mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int group, int group_channels, float offset_scale, bool remove_center) -> Tensor");
  m.def(
      "_dcnv4_backward(Tensor grad_output, Tensor input, Tensor offset_mask, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, int group, int group_channels, float offset_scale, "
      "bool remove_center, bool[2] output_mask) -> (Tensor, Tensor)");
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "_ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights, "
      "bool[3] output_mask) -> (Tensor, Tensor, Tensor)");
}
