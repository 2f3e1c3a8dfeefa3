#include <tuple>

#include "../common/derivatives.h"
#include "../common/roi.cuh"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

template <typename T, typename A>
__global__ void roi_maximum_kernel(RoiAlignShapes s, int64_t count, const T* input, const A* rois, T* output,
                                   A* argmax_y, A* argmax_x) {
  DCNZOO_FOR_EACH(index, count) {
    const RoiOutput<A> at(s, s.columns, rois, index);
    RoiMaximum<A> best{A(0), A(kOutsideMap), A(kOutsideMap)};
    if (at.map >= 0) {
      const RoiRegion<A> region = s.region(at.roi);
      const RoiSamples<A> y(region.y, at.y, s.height), x(region.x, at.x, s.width);
      best = roi_maximum<A>(input + at.map, y, x);
    }
    output[index] = T(best.value);
    argmax_y[index] = best.y;
    argmax_x[index] = best.x;
  }
}

template <typename T, typename A>
__global__ void roi_maximum_backward_kernel(RoiAlignShapes s, int64_t count, const T* grad_output,
                                            const A* rois, const A* argmax_y, const A* argmax_x,
                                            A* grad_input) {
  DCNZOO_FOR_EACH(index, count) {
    const RoiOutput<A> at(s, s.columns, rois, index);
    const A y = argmax_y[index], x = argmax_x[index];
    if (at.map < 0 || !roi_inside(y, s.height) || !roi_inside(x, s.width)) continue;
    roi_scatter(A(grad_output[index]), lerp_at(y, s.height), lerp_at(x, s.width), s.width,
                grad_input + at.map);
  }
}

std::tuple<Tensor, Tensor, Tensor> roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t output_h,
                                                  int64_t output_w, double spatial_scale,
                                                  int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes s =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
  const Tensor argmax_y = new_argmax(s, input), argmax_x = new_argmax(s, input);
  if (s.average) return {roi_average(s, input, rois, [&](auto) { return s; }), argmax_y, argmax_x};
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  if (const int64_t count = output.numel(); count > 0) {
    const Tensor maps = torch::stable::contiguous(input);
    const Tensor wide_rois = contiguous_as(rois, accumulate_type(input.scalar_type()));
    dispatch_floating(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      launch("roi_maximum_kernel", roi_maximum_kernel<T, A>, blocks_for(count), kThreads, maps, s, count,
             data_of<T>(maps), data_of<A>(wide_rois), mutable_data_of<T>(output),
             mutable_data_of<A>(argmax_y), mutable_data_of<A>(argmax_x));
    });
  }
  return {output, argmax_y, argmax_x};
}

Tensor roi_align_backward_cuda(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                               const Tensor& argmax_x, std::vector<int64_t> input_size, double spatial_scale,
                               int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes s = check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size,
                                                    spatial_scale, sampling_ratio, pool_mode, aligned);
  if (s.average) return roi_average_backward(s, grad_output, rois, [&](auto) { return s; });
  const ScalarType type = grad_output.scalar_type(), wide = accumulate_type(type);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, input_size, wide);
  const int64_t count = grad_output.numel();
  if (count > 0 && grad_input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output), wide_rois = contiguous_as(rois, wide);
    const Tensor y = contiguous_as(argmax_y, wide), x = contiguous_as(argmax_x, wide);
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      launch("roi_maximum_backward_kernel", roi_maximum_backward_kernel<T, A>, blocks_for(count), kThreads,
             gradients, s, count, data_of<T>(gradients), data_of<A>(wide_rois), data_of<A>(y), data_of<A>(x),
             mutable_data_of<A>(grad_input));
    });
  }
  return torch::stable::to(grad_input, type);
}

Tensor roi_align_rotated_cuda(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                              double spatial_scale, int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes s = check_roi_align_rotated(input, rois, output_h, output_w, spatial_scale,
                                                          sampling_ratio, aligned, clockwise);
  return roi_average(s, input, rois, [&](auto) { return s; });
}

Tensor roi_align_rotated_backward_cuda(const Tensor& grad_output, const Tensor& rois,
                                       std::vector<int64_t> input_size, double spatial_scale,
                                       int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes s = check_roi_align_rotated_backward(
      grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned, clockwise);
  return roi_average_backward(s, grad_output, rois, [&](auto) { return s; });
}

}  // namespace
}  // namespace dcnzoo

DCNZOO_DIFFERENTIABLE(CUDA, "roi_align", &dcnzoo::roi_align_cuda)
DCNZOO_DIFFERENTIABLE(CUDA, "roi_align_rotated", &dcnzoo::roi_align_rotated_cuda)

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cuda));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::roi_align_rotated_backward_cuda));
}
