#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  // pool_mode: 0 maximum, 1 average. argmax_y, argmax_x: the position of each maximum in pixels of the map (outside the
  // map if it receives no gradient); empty for the average.
  m.def(
      "roi_align(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, "
      "int sampling_ratio, int pool_mode, bool aligned) "
      "-> (Tensor output, Tensor argmax_y, Tensor argmax_x)");
  m.def(
      "_roi_align_backward(Tensor grad_output, Tensor rois, Tensor argmax_y, Tensor argmax_x, "
      "SymInt[] input_size, float spatial_scale, int sampling_ratio, int pool_mode, bool aligned) "
      "-> Tensor");
  m.def(
      "roi_align_rotated(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, "
      "int sampling_ratio, bool aligned, bool clockwise) -> Tensor");
  m.def(
      "_roi_align_rotated_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, "
      "float spatial_scale, int sampling_ratio, bool aligned, bool clockwise) -> Tensor");
}
