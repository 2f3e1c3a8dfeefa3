#include "../common/dispatch.cuh"
#include "../common/roi.cuh"
#include "roi_align_rotated_checks.h"

namespace dcnzoo {
namespace {

using Shapes = RoiAlignRotatedShapes;

// One bin of one channel of one region.
template <typename A>
struct Bin {
  int64_t y, x, map;  // map: the start of the image's channel, in elements
  RotatedRoi<A> region;
};

template <typename A>
__device__ Bin<A> bin_at(const Shapes& s, const A* rois, int64_t index) {
  Bin<A> bin;
  bin.x = index % s.output_w;
  bin.y = index / s.output_w % s.output_h;
  const int64_t channel = index / s.output_w / s.output_h % s.channels;
  const A* roi = rois + kRotatedRoiFields * (index / s.output_w / s.output_h / s.channels);
  bin.region = s.region(roi);
  const bool valid = roi[0] >= A(0) && roi[0] < A(s.batch);
  if (!valid) bin.region.down.samples = bin.region.across.samples = 0;
  bin.map = ((valid ? int64_t(roi[0]) : 0) * s.channels + channel) * s.height * s.width;
  return bin;
}

template <typename T, typename A>
__global__ void roi_align_rotated_kernel(Shapes s, int64_t count, const T* input, const A* rois, T* output) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    A sum = A(0);
    each_rotated_sample(bin.region, bin.y, bin.x, s.height, s.width, [&](const Lerp<A>& y, const Lerp<A>& x) {
      sum += roi_sample(input + bin.map, y, x, s.width);
    });
    output[index] = T(sum / roi_count(bin.region.down, bin.region.across));
  }
}

template <typename T, typename A>
__global__ void roi_align_rotated_backward_kernel(Shapes s, int64_t count, const T* grad_output,
                                                  const A* rois, A* grad_input) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    const A gradient = A(grad_output[index]) / roi_count(bin.region.down, bin.region.across);
    each_rotated_sample(bin.region, bin.y, bin.x, s.height, s.width, [&](const Lerp<A>& y, const Lerp<A>& x) {
      roi_scatter(gradient, y, x, s.width, grad_input + bin.map);
    });
  }
}

Tensor roi_align_rotated_cuda(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                              double spatial_scale, int64_t sampling_ratio, bool aligned, bool clockwise) {
  const Shapes s = check_roi_align_rotated("input", input, rois, sizes_of(input), output_h, output_w,
                                           spatial_scale, sampling_ratio, aligned, clockwise);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const int64_t count = output.numel();
  if (count == 0) return output;
  const Tensor maps = torch::stable::contiguous(input);
  const Tensor regions = contiguous_as(rois, accumulate_type(input.scalar_type()));
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch("roi_align_rotated_kernel", roi_align_rotated_kernel<T, A>, blocks_for(count), kThreads, maps, s,
           count, data_of<T>(maps), data_of<A>(regions), mutable_data_of<T>(output));
  });
  return output;
}

Tensor roi_align_rotated_backward_cuda(const Tensor& grad_output, const Tensor& rois,
                                       std::vector<int64_t> input_size, double spatial_scale,
                                       int64_t sampling_ratio, bool aligned, bool clockwise) {
  const Shapes s = check_roi_align_rotated_backward(grad_output, rois, input_size, spatial_scale,
                                                    sampling_ratio, aligned, clockwise);
  const ScalarType type = grad_output.scalar_type(), wide = accumulate_type(type);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, input_size, wide);
  const int64_t count = grad_output.numel();
  if (count > 0 && grad_input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output);
    const Tensor regions = contiguous_as(rois, wide);
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      launch("roi_align_rotated_backward_kernel", roi_align_rotated_backward_kernel<T, A>, blocks_for(count),
             kThreads, gradients, s, count, data_of<T>(gradients), data_of<A>(regions),
             mutable_data_of<A>(grad_input));
    });
  }
  return torch::stable::to(grad_input, type);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&dcnzoo::roi_align_rotated_cuda));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::roi_align_rotated_backward_cuda));
}
