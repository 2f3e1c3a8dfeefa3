#include "../common/tensor.h"

#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

// The checks of the kernels, with the same messages, for kernels that are not written in C++.

void check_roi_align_arguments(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                               double spatial_scale, int64_t sampling_ratio, int64_t pool_mode,
                               bool aligned) {
  check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
}

void check_roi_align_backward_arguments(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                                        const Tensor& argmax_x, const std::vector<int64_t>& input_size,
                                        double spatial_scale, int64_t sampling_ratio, int64_t pool_mode,
                                        bool aligned) {
  check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size, spatial_scale, sampling_ratio,
                           pool_mode, aligned);
}

void check_roi_align_rotated_arguments(const Tensor& input, const Tensor& rois, int64_t output_h,
                                       int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                       bool aligned, bool clockwise) {
  check_roi_align_rotated(input, rois, output_h, output_w, spatial_scale, sampling_ratio, aligned, clockwise);
}

void check_roi_align_rotated_backward_arguments(const Tensor& grad_output, const Tensor& rois,
                                                const std::vector<int64_t>& input_size, double spatial_scale,
                                                int64_t sampling_ratio, bool aligned, bool clockwise) {
  check_roi_align_rotated_backward(grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned,
                                   clockwise);
}

}  // namespace
}  // namespace dcnzoo

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
  m.def(
      "_check_roi_align(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, "
      "int sampling_ratio, int pool_mode, bool aligned) -> ()");
  m.def(
      "_check_roi_align_backward(Tensor grad_output, Tensor rois, Tensor argmax_y, Tensor argmax_x, "
      "SymInt[] input_size, float spatial_scale, int sampling_ratio, int pool_mode, bool aligned) -> ()");
  m.def(
      "_check_roi_align_rotated(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, "
      "int sampling_ratio, bool aligned, bool clockwise) -> ()");
  m.def(
      "_check_roi_align_rotated_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, "
      "float spatial_scale, int sampling_ratio, bool aligned, bool clockwise) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_roi_align", TORCH_BOX(&dcnzoo::check_roi_align_arguments));
  m.impl("_check_roi_align_backward", TORCH_BOX(&dcnzoo::check_roi_align_backward_arguments));
  m.impl("_check_roi_align_rotated", TORCH_BOX(&dcnzoo::check_roi_align_rotated_arguments));
  m.impl("_check_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::check_roi_align_rotated_backward_arguments));
}
