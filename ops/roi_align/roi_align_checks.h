// Checks and sizes that the CPU and the CUDA kernels of roi_align share.
#pragma once

#include "../common/rois.h"

namespace dcnzoo {

struct RoiAlignShapes : RoiShapes {
  static constexpr int kChannelsOfThread = 4;  // finding a bin's samples takes longer than reading them
  bool aligned;

  template <typename T>
  DCNZOO_HD RoiRegion<T> region(const T* roi, int64_t = 0, int64_t = 0, int64_t = 0) const {
    return {roi_axis(roi[2], roi[4], T(spatial_scale), aligned, output_h, sampling_ratio),
            roi_axis(roi[1], roi[3], T(spatial_scale), aligned, output_w, sampling_ratio)};
  }
};

inline RoiAlignShapes check_roi_align(const Tensor& input, const Tensor& rois, int64_t output_h,
                                      int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                      bool aligned) {
  const RoiChecks checks{{"roi_align", input}};
  return {checks.forward(rois, output_h, output_w, spatial_scale, sampling_ratio), aligned};
}

inline RoiAlignShapes check_roi_align_backward(const Tensor& grad_output, const Tensor& rois,
                                               const std::vector<int64_t>& input_size, double spatial_scale,
                                               int64_t sampling_ratio, bool aligned) {
  const RoiChecks checks{{"roi_align", grad_output}};
  return {checks.backward(rois, input_size, spatial_scale, sampling_ratio), aligned};
}

}  // namespace dcnzoo
