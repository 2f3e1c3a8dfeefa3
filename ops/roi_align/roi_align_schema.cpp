#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "roi_align(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "_roi_align_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, float spatial_scale, "
      "int sampling_ratio, bool aligned) -> Tensor");
}
