// Checks and sizes that the CPU and the CUDA kernels of roi_align_rotated share.
#pragma once

#include "../common/rois.h"
#include "roi_align_rotated_math.h"

namespace dcnzoo {

struct RoiAlignRotatedShapes : RoiShapes {
  static constexpr int64_t columns = 6;
  bool aligned, clockwise;

  template <typename T>
  DCNZOO_HD RotatedRoi<T> region(const T* roi, int64_t = 0, int64_t = 0, int64_t = 0) const {
    return rotated_roi(roi, T(spatial_scale), aligned, clockwise, output_h, output_w, sampling_ratio, height,
                       width);
  }
};

inline RoiChecks rotated_checks(const Tensor& rois) {
  return {"roi_align_rotated", rois, RoiAlignRotatedShapes::columns, "image, x, y, width, height, angle"};
}

inline RoiAlignRotatedShapes check_roi_align_rotated(const Tensor& input, const Tensor& rois,
                                                     int64_t output_h, int64_t output_w, double spatial_scale,
                                                     int64_t sampling_ratio, bool aligned, bool clockwise) {
  return {rotated_checks(rois).forward(input, output_h, output_w, spatial_scale, sampling_ratio), aligned,
          clockwise};
}

inline RoiAlignRotatedShapes check_roi_align_rotated_backward(const Tensor& grad_output, const Tensor& rois,
                                                              const std::vector<int64_t>& input_size,
                                                              double spatial_scale, int64_t sampling_ratio,
                                                              bool aligned, bool clockwise) {
  return {rotated_checks(rois).backward(grad_output, input_size, spatial_scale, sampling_ratio), aligned,
          clockwise};
}

}  // namespace dcnzoo
