#include "../common/tensor.h"

#include "deform_roi_pool_checks.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, "
      "float spatial_scale, int sampling_ratio, float gamma) -> Tensor");
  // output_mask: which of the two gradients are needed; the others are empty.
  m.def(
      "_deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor offset, "
      "float spatial_scale, int sampling_ratio, float gamma, bool[2] output_mask) "
      "-> (Tensor grad_input, Tensor grad_offset)");
  m.def(
      "_check_deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, "
      "float spatial_scale, int sampling_ratio, float gamma, Tensor? grad_output=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_deform_roi_pool", TORCH_BOX(&dcnzoo::ChecksOf<dcnzoo::check_deform_roi_pool>::run));
}
