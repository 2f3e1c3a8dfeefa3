#include <tuple>

#include "../common/dispatch.cuh"
#include "../common/roi.cuh"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

// One bin of one channel of one RoI.
template <typename A>
struct Bin {
  int64_t y, x, image, channel;
  RoiAxis<A> y_axis, x_axis;
  bool valid;  // whether the RoI's image is in the batch
};

template <typename A>
__device__ Bin<A> bin_at(const RoiAlignShapes& s, const A* rois, int64_t index) {
  Bin<A> bin;
  bin.x = index % s.output_w;
  bin.y = index / s.output_w % s.output_h;
  bin.channel = index / s.output_w / s.output_h % s.channels;
  const A* roi = rois + 5 * (index / s.output_w / s.output_h / s.channels);
  bin.valid = roi[0] >= A(0) && roi[0] < A(s.batch);
  bin.image = bin.valid ? int64_t(roi[0]) : 0;
  bin.y_axis = s.y_axis(roi);
  bin.x_axis = s.x_axis(roi);
  return bin;
}

template <typename T, typename A>
__global__ void roi_average_kernel(RoiAlignShapes s, int64_t count, const T* input, const A* rois,
                                   T* output) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    const T* map = input + (bin.image * s.channels + bin.channel) * s.height * s.width;
    A sum = A(0);
    if (bin.valid) {
      const RoiSpan ys = roi_span(bin.y_axis, bin.y, s.height);
      const RoiSpan xs = roi_span(bin.x_axis, bin.x, s.width);
      for (int64_t iy = ys.begin; iy < ys.end; ++iy) {
        const Lerp<A> y = lerp_at(roi_coordinate(bin.y_axis, bin.y, iy), s.height);
        for (int64_t ix = xs.begin; ix < xs.end; ++ix)
          sum += roi_sample(map, y, lerp_at(roi_coordinate(bin.x_axis, bin.x, ix), s.width), s.width);
      }
    }
    output[index] = T(sum / roi_count(bin.y_axis, bin.x_axis));
  }
}

template <typename T, typename A>
__global__ void roi_maximum_kernel(RoiAlignShapes s, int64_t count, const T* input, const A* rois, T* output,
                                   A* argmax_y, A* argmax_x) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    const T* map = input + (bin.image * s.channels + bin.channel) * s.height * s.width;
    RoiMaximum<A> best{A(0), A(kOutsideMap), A(kOutsideMap)};
    if (bin.valid) {
      const RoiSamples<A> y(bin.y_axis, bin.y, s.height), x(bin.x_axis, bin.x, s.width);
      best = roi_maximum<A>(map, s.width, y, x);
    }
    output[index] = T(best.value);
    argmax_y[index] = best.y;
    argmax_x[index] = best.x;
  }
}

template <typename T, typename A>
__global__ void roi_average_backward_kernel(RoiAlignShapes s, int64_t count, const T* grad_output,
                                            const A* rois, A* grad_input) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    if (!bin.valid) continue;
    A* map = grad_input + (bin.image * s.channels + bin.channel) * s.height * s.width;
    const A gradient = A(grad_output[index]) / roi_count(bin.y_axis, bin.x_axis);
    const RoiSpan ys = roi_span(bin.y_axis, bin.y, s.height);
    const RoiSpan xs = roi_span(bin.x_axis, bin.x, s.width);
    for (int64_t iy = ys.begin; iy < ys.end; ++iy) {
      const Lerp<A> y = lerp_at(roi_coordinate(bin.y_axis, bin.y, iy), s.height);
      for (int64_t ix = xs.begin; ix < xs.end; ++ix)
        roi_scatter(gradient, y, lerp_at(roi_coordinate(bin.x_axis, bin.x, ix), s.width), s.width, map);
    }
  }
}

template <typename T, typename A>
__global__ void roi_maximum_backward_kernel(RoiAlignShapes s, int64_t count, const T* grad_output,
                                            const A* rois, const A* argmax_y, const A* argmax_x,
                                            A* grad_input) {
  DCNZOO_FOR_EACH(index, count) {
    const Bin<A> bin = bin_at(s, rois, index);
    const A y = argmax_y[index], x = argmax_x[index];
    if (!bin.valid || !roi_inside(y, s.height) || !roi_inside(x, s.width)) continue;
    A* map = grad_input + (bin.image * s.channels + bin.channel) * s.height * s.width;
    roi_scatter(A(grad_output[index]), lerp_at(y, s.height), lerp_at(x, s.width), s.width, map);
  }
}

std::tuple<Tensor, Tensor, Tensor> roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t output_h,
                                                  int64_t output_w, double spatial_scale,
                                                  int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes s =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
  const ScalarType wide = accumulate_type(input.scalar_type());
  const std::vector<int64_t> sizes{s.rois, s.channels, output_h, output_w};
  const std::vector<int64_t> argmax_sizes = s.average ? std::vector<int64_t>{0} : sizes;
  const RoiAlignOutputs out{torch::stable::new_empty(input, sizes),
                            torch::stable::new_empty(input, argmax_sizes, wide),
                            torch::stable::new_empty(input, argmax_sizes, wide)};
  if (out.output.numel() > 0) {
    const Tensor maps = torch::stable::contiguous(input), wide_rois = contiguous_as(rois, wide);
    const int64_t count = out.output.numel();
    dispatch_floating(input.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      if (s.average)
        launch("roi_average_kernel", roi_average_kernel<T, A>, blocks_for(count), kThreads, maps, s, count,
               data_of<T>(maps), data_of<A>(wide_rois), mutable_data_of<T>(out.output));
      else
        launch("roi_maximum_kernel", roi_maximum_kernel<T, A>, blocks_for(count), kThreads, maps, s, count,
               data_of<T>(maps), data_of<A>(wide_rois), mutable_data_of<T>(out.output),
               mutable_data_of<A>(out.argmax_y), mutable_data_of<A>(out.argmax_x));
    });
  }
  return {out.output, out.argmax_y, out.argmax_x};
}

Tensor roi_align_backward_cuda(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                               const Tensor& argmax_x, std::vector<int64_t> input_size, double spatial_scale,
                               int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes s = check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size,
                                                    spatial_scale, sampling_ratio, pool_mode, aligned);
  const ScalarType type = grad_output.scalar_type(), wide = accumulate_type(type);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, input_size, wide);
  if (grad_output.numel() > 0 && grad_input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output);
    const Tensor wide_rois = contiguous_as(rois, wide);
    const Tensor y = contiguous_as(argmax_y, wide), x = contiguous_as(argmax_x, wide);
    const int64_t count = gradients.numel();
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      if (s.average)
        launch("roi_average_backward_kernel", roi_average_backward_kernel<T, A>, blocks_for(count), kThreads,
               gradients, s, count, data_of<T>(gradients), data_of<A>(wide_rois),
               mutable_data_of<A>(grad_input));
      else
        launch("roi_maximum_backward_kernel", roi_maximum_backward_kernel<T, A>, blocks_for(count), kThreads,
               gradients, s, count, data_of<T>(gradients), data_of<A>(wide_rois), data_of<A>(y),
               data_of<A>(x), mutable_data_of<A>(grad_input));
    });
  }
  return torch::stable::to(grad_input, type);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&dcnzoo::roi_align_cuda));
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cuda));
}
