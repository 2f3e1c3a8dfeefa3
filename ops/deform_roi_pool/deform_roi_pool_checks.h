// Checks and sizes that the CPU and the CUDA kernels of deform_roi_pool share.
#pragma once

#include "../common/rois.h"
#include "deform_roi_pool_math.h"

namespace dcnzoo {

struct DeformRoiPoolShapes {
  int64_t batch, channels, height, width;  // of the input
  int64_t rois, output_h, output_w;
  double spatial_scale, gamma;
  int64_t sampling_ratio;

  template <typename T>
  DCNZOO_HD DeformRoiAxis<T> y_axis(const T* roi) const {
    return deform_roi_axis(roi[2], roi[4], T(spatial_scale), T(gamma), output_h, sampling_ratio);
  }
  template <typename T>
  DCNZOO_HD DeformRoiAxis<T> x_axis(const T* roi) const {
    return deform_roi_axis(roi[1], roi[3], T(spatial_scale), T(gamma), output_w, sampling_ratio);
  }

  std::vector<int64_t> output_sizes() const { return {rois, channels, output_h, output_w}; }
};

inline DeformRoiPoolShapes check_deform_roi_pool(const Tensor& input, const Tensor& rois,
                                                 const Tensor& offset, int64_t output_h, int64_t output_w,
                                                 double spatial_scale, int64_t sampling_ratio, double gamma) {
  constexpr const char* op = "deform_roi_pool";
  const std::vector<int64_t> size = sizes_of(input);
  check(is_floating(input.scalar_type()), op, ": input: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(input.scalar_type()));
  check_rois(op, rois, "input", input);
  check_roi_pooling(op, size, output_h, output_w, spatial_scale, sampling_ratio);
  check(std::isfinite(gamma), op, ": gamma: expected a finite number, got ", gamma);
  const std::vector<int64_t> offset_size{rois.size(0), 2, output_h, output_w};
  check(sizes_of(offset) == offset_size, op, ": offset: expected shape ", shape_text(offset_size),
        " (rois, x and y, bins), got ", shape_text(sizes_of(offset)));
  check(is_floating(offset.scalar_type()), op,
        ": offset: expected float64, float32, bfloat16 or float16, got ", dtype_name(offset.scalar_type()));
  check(same_device(offset, input), op, ": offset: expected device ", device_name(input), " like input, got ",
        device_name(offset));
  return {size[0],  size[1],  size[2],       size[3], rois.size(0),
          output_h, output_w, spatial_scale, gamma,   sampling_ratio};
}

inline DeformRoiPoolShapes check_deform_roi_pool_backward(const Tensor& grad_output, const Tensor& input,
                                                          const Tensor& rois, const Tensor& offset,
                                                          double spatial_scale, int64_t sampling_ratio,
                                                          double gamma,
                                                          const std::vector<bool>& output_mask) {
  constexpr const char* op = "deform_roi_pool backward";
  check(grad_output.dim() == 4, op, ": grad_output: expected 4 dimensions, got shape ",
        shape_text(sizes_of(grad_output)));
  const DeformRoiPoolShapes shapes = check_deform_roi_pool(
      input, rois, offset, grad_output.size(2), grad_output.size(3), spatial_scale, sampling_ratio, gamma);
  check(sizes_of(grad_output) == shapes.output_sizes(), op, ": grad_output: expected shape ",
        shape_text(shapes.output_sizes()), ", got ", shape_text(sizes_of(grad_output)));
  check(grad_output.scalar_type() == input.scalar_type() && same_device(grad_output, input), op,
        ": grad_output: expected ", dtype_name(input.scalar_type()), " on ", device_name(input),
        " like input, got ", dtype_name(grad_output.scalar_type()), " on ", device_name(grad_output));
  check(output_mask.size() == 2, op, ": output_mask: expected 2 values, got ", output_mask.size());
  return shapes;
}

}  // namespace dcnzoo
