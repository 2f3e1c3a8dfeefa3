// Checks and sizes that the CPU and the CUDA kernels of roi_align share.
#pragma once

#include "../common/rois.h"
#include "roi_align_math.h"

namespace dcnzoo {

struct RoiAlignShapes {
  int64_t batch, channels, height, width;  // of the input
  int64_t rois, output_h, output_w;
  double spatial_scale;
  int64_t sampling_ratio;
  bool average, aligned;

  template <typename T>
  DCNZOO_HD RoiAxis<T> y_axis(const T* roi) const {
    return roi_axis(roi[2], roi[4], T(spatial_scale), aligned, output_h, sampling_ratio);
  }
  template <typename T>
  DCNZOO_HD RoiAxis<T> x_axis(const T* roi) const {
    return roi_axis(roi[1], roi[3], T(spatial_scale), aligned, output_w, sampling_ratio);
  }
};

struct RoiAlignOutputs {
  Tensor output, argmax_y, argmax_x;
};

inline RoiAlignShapes roi_align_shapes(const std::vector<int64_t>& input_size, const Tensor& rois,
                                       int64_t output_h, int64_t output_w, double spatial_scale,
                                       int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  check_roi_pooling("roi_align", input_size, output_h, output_w, spatial_scale, sampling_ratio);
  check(pool_mode == 0 || pool_mode == 1, "roi_align: pool_mode: expected 0 (maximum) or 1 (average), got ",
        pool_mode);
  return {input_size[0], input_size[1], input_size[2],  input_size[3],  rois.size(0), output_h,
          output_w,      spatial_scale, sampling_ratio, pool_mode == 1, aligned};
}

inline RoiAlignShapes check_roi_align(const Tensor& input, const Tensor& rois, int64_t output_h,
                                      int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                      int64_t pool_mode, bool aligned) {
  check(is_floating(input.scalar_type()),
        "roi_align: input: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(input.scalar_type()));
  check_rois("roi_align", rois, "input", input);
  return roi_align_shapes(sizes_of(input), rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode,
                          aligned);
}

inline RoiAlignShapes check_roi_align_backward(const Tensor& grad_output, const Tensor& rois,
                                               const Tensor& argmax_y, const Tensor& argmax_x,
                                               const std::vector<int64_t>& input_size, double spatial_scale,
                                               int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  check(is_floating(grad_output.scalar_type()),
        "roi_align: grad_output: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(grad_output.scalar_type()));
  check_rois("roi_align", rois, "grad_output", grad_output);
  check(grad_output.dim() == 4 && input_size.size() == 4 && grad_output.size(0) == rois.size(0) &&
            grad_output.size(1) == input_size[1],
        "roi_align: grad_output: expected shape (rois, channels, output_h, output_w), got ",
        shape_text(sizes_of(grad_output)), " for ", rois.size(0), " rois and input shape ",
        shape_text(input_size));
  const RoiAlignShapes shapes = roi_align_shapes(input_size, rois, grad_output.size(2), grad_output.size(3),
                                                 spatial_scale, sampling_ratio, pool_mode, aligned);
  for (const Tensor* argmax : {&argmax_y, &argmax_x})
    check(shapes.average || (sizes_of(*argmax) == sizes_of(grad_output) && same_device(*argmax, grad_output)),
          "roi_align: argmax: expected shape ", shape_text(sizes_of(grad_output)),
          " and device like grad_output, got ", shape_text(sizes_of(*argmax)));
  return shapes;
}

}  // namespace dcnzoo
