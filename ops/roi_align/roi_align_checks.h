// Checks and sizes that the CPU and the CUDA kernels of roi_align and roi_align_rotated share.
#pragma once

#include "../common/rois.h"
#include "roi_align_math.h"
#include "roi_align_rotated_math.h"

namespace dcnzoo {

struct RoiAlignShapes : RoiShapes {
  static constexpr int kChannelsOfThread = 4;  // finding a bin's samples takes longer than reading them
  bool average, aligned;

  template <typename T>
  DCNZOO_HD RoiRegion<T> region(const T* roi, int64_t = 0, int64_t = 0, int64_t = 0) const {
    return {roi_axis(roi[2], roi[4], T(spatial_scale), aligned, output_h, sampling_ratio),
            roi_axis(roi[1], roi[3], T(spatial_scale), aligned, output_w, sampling_ratio)};
  }
};

inline bool is_average(int64_t pool_mode) {
  check(pool_mode == 0 || pool_mode == 1, "roi_align: pool_mode: expected 0 (maximum) or 1 (average), got ",
        pool_mode);
  return pool_mode == 1;
}

inline RoiAlignShapes check_roi_align(const Tensor& input, const Tensor& rois, int64_t output_h,
                                      int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                      int64_t pool_mode, bool aligned) {
  const RoiChecks checks{{"roi_align", input}};
  return {checks.forward(rois, RoiAlignShapes::columns, output_h, output_w, spatial_scale, sampling_ratio),
          is_average(pool_mode), aligned};
}

inline RoiAlignShapes check_roi_align_backward(const Tensor& grad_output, const Tensor& rois,
                                               const Tensor& argmax_y, const Tensor& argmax_x,
                                               const std::vector<int64_t>& input_size, double spatial_scale,
                                               int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiChecks checks{{"roi_align", grad_output}};
  const RoiAlignShapes shapes{
      checks.backward(rois, RoiAlignShapes::columns, input_size, spatial_scale, sampling_ratio),
      is_average(pool_mode), aligned};
  const std::vector<int64_t> sizes = sizes_of(grad_output);
  for (const Tensor* argmax : {&argmax_y, &argmax_x})
    if (!shapes.average) checks.tensor("argmax", *argmax, {sizes.begin(), sizes.end()}, Type::floating);
  return shapes;
}

// A tensor for positions of maxima; empty for the average.
inline Tensor new_argmax(const RoiAlignShapes& s, const Tensor& input) {
  return torch::stable::new_empty(input, s.average ? std::vector<int64_t>{0} : s.output_sizes(),
                                  accumulate_type(input.scalar_type()));
}

struct RoiAlignRotatedShapes : RoiShapes {
  static constexpr int64_t columns = 6;
  bool aligned, clockwise;

  template <typename T>
  DCNZOO_HD RotatedRoi<T> region(const T* roi, int64_t = 0, int64_t = 0, int64_t = 0) const {
    return rotated_roi(roi, T(spatial_scale), aligned, clockwise, output_h, output_w, sampling_ratio, height,
                       width);
  }
};

inline RoiAlignRotatedShapes check_roi_align_rotated(const Tensor& input, const Tensor& rois,
                                                     int64_t output_h, int64_t output_w, double spatial_scale,
                                                     int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiChecks checks{{"roi_align_rotated", input}};
  return {
      checks.forward(rois, RoiAlignRotatedShapes::columns, output_h, output_w, spatial_scale, sampling_ratio),
      aligned, clockwise};
}

inline RoiAlignRotatedShapes check_roi_align_rotated_backward(const Tensor& grad_output, const Tensor& rois,
                                                              const std::vector<int64_t>& input_size,
                                                              double spatial_scale, int64_t sampling_ratio,
                                                              bool aligned, bool clockwise) {
  const RoiChecks checks{{"roi_align_rotated", grad_output}};
  return {checks.backward(rois, RoiAlignRotatedShapes::columns, input_size, spatial_scale, sampling_ratio),
          aligned, clockwise};
}

}  // namespace dcnzoo
