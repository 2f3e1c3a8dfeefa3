#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, "
      "float spatial_scale, int sampling_ratio, float gamma) -> Tensor");
  // output_mask: which of the two gradients are needed; the others are empty.
  m.def(
      "_deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor offset, "
      "float spatial_scale, int sampling_ratio, float gamma, bool[2] output_mask) "
      "-> (Tensor grad_input, Tensor grad_offset)");
}
