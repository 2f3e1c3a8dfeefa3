#include "../common/tensor.h"

#include "deform_conv_checks.h"

namespace dcnzoo {
namespace {

// The same checks, with the same messages, for kernels that are not written in C++.
void check_deform_conv_arguments(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                                 std::optional<Tensor> mask, std::optional<Tensor> bias,
                                 const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation, int64_t groups,
                                 std::optional<int64_t> im2col_step, std::optional<Tensor> grad_output) {
  const DeformConvShapes s =
      check_deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step);
  if (grad_output) check_grad_output(s, *grad_output, input, offset, mask, std::vector<bool>(5, false));
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_conv(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step) -> Tensor");
  // output_mask: which of (input, weight, offset, mask, bias) need a gradient; the other gradients are empty.
  m.def(
      "_deform_conv_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? offset, "
      "Tensor? mask, int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step, "
      "bool[5] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_check_deform_conv(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step, Tensor? grad_output=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_deform_conv", TORCH_BOX(&dcnzoo::check_deform_conv_arguments));
}
