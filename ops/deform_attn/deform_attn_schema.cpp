#include "../common/tensor.h"

#include "deform_attn_checks.h"

namespace dcnzoo {
namespace {

// The checks alone, for kernels that are not written in C++.
template <typename... Numbers>
struct KernelChecks {
  static void dcnv3(const Tensor& input, const Tensor& offset, const Tensor& mask, Numbers... numbers,
                    std::optional<Tensor> grad_output) {
    check_dcnv3(input, offset, mask, {numbers...}, grad_output);
  }
  static void dcnv4(const Tensor& input, const Tensor& offset_mask, Numbers... numbers,
                    std::optional<Tensor> grad_output) {
    check_dcnv4(input, offset_mask, {numbers...}, grad_output);
  }
};

}  // namespace
}  // namespace dcnzoo

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
  m.def(
      "_check_dcnv3(Tensor input, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int group, int group_channels, float offset_scale, bool remove_center, "
      "Tensor? grad_output=None) -> ()");
  m.def(
      "_check_dcnv4(Tensor input, Tensor offset_mask, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int group, int group_channels, float offset_scale, bool remove_center, "
      "Tensor? grad_output=None) -> ()");
  m.def(
      "_check_ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, Tensor? grad_output=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_dcnv3", TORCH_BOX(&dcnzoo::WithNumbers<dcnzoo::KernelChecks>::dcnv3));
  m.impl("_check_dcnv4", TORCH_BOX(&dcnzoo::WithNumbers<dcnzoo::KernelChecks>::dcnv4));
  m.impl("_check_ms_deform_attn", TORCH_BOX(&dcnzoo::ChecksOf<dcnzoo::check_ms_deform_attn>::run));
}
