// Checks and sizes that the CPU and the CUDA kernels of deform_roi_pool share.
#pragma once

#include "../common/rois.h"
#include "deform_roi_pool_math.h"

namespace dcnzoo {

struct DeformRoiPoolShapes : RoiShapes {
  double gamma;

  template <typename T>
  DCNZOO_HD DeformRoiAxis<T> y_axis(const T* roi) const {
    return deform_roi_axis(roi[2], roi[4], T(spatial_scale), T(gamma), output_h, sampling_ratio);
  }
  template <typename T>
  DCNZOO_HD DeformRoiAxis<T> x_axis(const T* roi) const {
    return deform_roi_axis(roi[1], roi[3], T(spatial_scale), T(gamma), output_w, sampling_ratio);
  }
};

inline DeformRoiPoolShapes check_deform_roi_pool(const Tensor& input, const Tensor& rois,
                                                 const Tensor& offset, int64_t output_h, int64_t output_w,
                                                 double spatial_scale, int64_t sampling_ratio, double gamma,
                                                 const std::optional<Tensor>& grad_output = std::nullopt) {
  const RoiChecks checks{{"deform_roi_pool", input}};
  const DeformRoiPoolShapes shapes{checks.forward(rois, output_h, output_w, spatial_scale, sampling_ratio),
                                   gamma};
  check(std::isfinite(gamma), checks.op, ": gamma: expected a finite number, got ", gamma);
  checks.tensor("offset", offset, {rois.size(0), 2, output_h, output_w}, Type::floating);
  checks.grad_output(grad_output, shapes.output_sizes());
  return shapes;
}

inline DeformRoiPoolShapes check_deform_roi_pool_backward(const Tensor& grad_output, const Tensor& input,
                                                          const Tensor& rois, const Tensor& offset,
                                                          double spatial_scale, int64_t sampling_ratio,
                                                          double gamma,
                                                          const std::vector<bool>& output_mask) {
  ArgumentChecks{"deform_roi_pool", input}.output_mask(output_mask, 2);
  check(grad_output.dim() == 4, "deform_roi_pool backward: grad_output: expected 4 dimensions, got shape ",
        shape_text(sizes_of(grad_output)));
  return check_deform_roi_pool(input, rois, offset, grad_output.size(2), grad_output.size(3), spatial_scale,
                               sampling_ratio, gamma, grad_output);
}

}  // namespace dcnzoo
