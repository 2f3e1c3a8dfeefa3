#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_conv(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step) -> Tensor");
  // output_mask: which of (input, weight, offset, mask, bias) need a gradient; the other gradients are empty.
  m.def(
      "_deform_conv_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? offset, "
      "Tensor? mask, int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step, "
      "bool[5] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
