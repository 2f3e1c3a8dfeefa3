// Checks and sizes that the CPU and the CUDA kernels of roi_align_rotated share.
#pragma once

#include "../common/rois.h"
#include "roi_align_rotated_math.h"

namespace dcnzoo {

struct RoiAlignRotatedShapes {
  int64_t batch, channels, height, width;  // of the input
  int64_t rois, output_h, output_w;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned, clockwise;

  std::vector<int64_t> output_sizes() const { return {rois, channels, output_h, output_w}; }

  template <typename T>
  DCNZOO_HD RotatedRoi<T> region(const T* roi) const {
    return rotated_roi(roi, T(spatial_scale), aligned, clockwise, output_h, output_w, sampling_ratio, height,
                       width);
  }
};

inline RoiAlignRotatedShapes check_roi_align_rotated(const char* name, const Tensor& maps, const Tensor& rois,
                                                     const std::vector<int64_t>& input_size, int64_t output_h,
                                                     int64_t output_w, double spatial_scale,
                                                     int64_t sampling_ratio, bool aligned, bool clockwise) {
  constexpr const char* op = "roi_align_rotated";
  check(is_floating(maps.scalar_type()), op, ": ", name,
        ": expected float64, float32, bfloat16 or float16, got ", dtype_name(maps.scalar_type()));
  check_rois(op, rois, name, maps, kRotatedRoiFields, "image, x, y, width, height, angle");
  check_roi_pooling(op, input_size, output_h, output_w, spatial_scale, sampling_ratio);
  return {input_size[0], input_size[1], input_size[2],  input_size[3], rois.size(0), output_h,
          output_w,      spatial_scale, sampling_ratio, aligned,       clockwise};
}

inline RoiAlignRotatedShapes check_roi_align_rotated_backward(const Tensor& grad_output, const Tensor& rois,
                                                              const std::vector<int64_t>& input_size,
                                                              double spatial_scale, int64_t sampling_ratio,
                                                              bool aligned, bool clockwise) {
  check(grad_output.dim() == 4 && input_size.size() == 4 && grad_output.size(0) == rois.size(0) &&
            grad_output.size(1) == input_size[1],
        "roi_align_rotated: grad_output: expected shape (rois, channels, output_h, output_w), got ",
        shape_text(sizes_of(grad_output)), " for ", rois.size(0), " rois and input shape ",
        shape_text(input_size));
  return check_roi_align_rotated("grad_output", grad_output, rois, input_size, grad_output.size(2),
                                 grad_output.size(3), spatial_scale, sampling_ratio, aligned, clockwise);
}

}  // namespace dcnzoo
