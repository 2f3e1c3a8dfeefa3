// RoI pooling on CUDA.
#pragma once

#include "dispatch.cuh"
#include "launch.cuh"
#include "rois.h"

namespace dcnzoo {

// The adjoint of roi_sample. Atomics: RoIs overlap, and so do the samples of neighbouring bins.
template <typename A>
__device__ void roi_scatter(A gradient, const Lerp<A>& y, const Lerp<A>& x, int64_t width, A* map) {
  each_pixel(y, x, width, [&](int64_t pixel, A weight) { atomicAdd(map + pixel, weight * gradient); });
}

// The start of a channel's map in the input, or -1 if the RoI's image is not in the batch. Such a RoI gives zeros.
template <typename A>
__device__ int64_t roi_map(const RoiShapes& s, const A* roi, int64_t channel) {
  const bool valid = roi[0] >= A(0) && roi[0] < A(s.batch);  // false for NaN
  return valid ? (int64_t(roi[0]) * s.channels + channel) * s.pixels() : -1;
}

// The outputs that one thread computes: a bin of `group` successive channels of a RoI.
template <typename A>
struct RoiOutput {
  int64_t number, channel, y, x, map;  // number: of the RoI; map: as roi_map returns it
  const A* roi;

  __device__ RoiOutput(const RoiShapes& s, const A* rois, int64_t index, int64_t group = 1) {
    x = index % s.output_w;
    y = index / s.output_w % s.output_h;
    const int64_t groups = ceil_div(s.channels, group), row = index / s.output_w / s.output_h;
    number = row / groups;
    channel = row % groups * group;
    roi = rois + RoiShapes::kColumns * number;
    map = roi_map(s, roi, channel);
  }

  __device__ int64_t output_index(const RoiShapes& s) const {  // of the first channel
    return ((number * s.channels + channel) * s.output_h + y) * s.output_w + x;
  }
};

// The number of threads, each of which computes a bin of Shapes::kChannelsOfThread channels.
template <typename Shapes>
int64_t roi_threads(const Shapes& s) {
  return s.rois * ceil_div(s.channels, Shapes::kChannelsOfThread) * s.bins();
}

// The average of the samples of every bin. Shapes: the operator's RoiShapes. Its region(roi, number, y, x) returns a
// region with count() and each_sample(y, x, height, width, visit), such as RoiRegion.
template <typename Shapes, typename T, typename A>
__global__ void roi_average_kernel(Shapes s, int64_t threads, const T* input, const A* rois, T* output) {
  DCNZOO_FOR_EACH(index, threads) {
    constexpr int kChannels = Shapes::kChannelsOfThread;
    const RoiOutput<A> at(s, rois, index, kChannels);
    const int64_t channels = s.channels - at.channel;
    A sums[kChannels] = {}, count = A(1);
    if (at.map >= 0) {
      const auto region = s.region(at.roi, at.number, at.y, at.x);
      count = region.count();
      region.each_sample(at.y, at.x, s.height, s.width, [&](const Lerp<A>& y, const Lerp<A>& x) {
        for (int i = 0; i < kChannels; ++i)
          if (i < channels) sums[i] += roi_sample(input + at.map + i * s.pixels(), y, x, s.width);
      });
    }
    for (int i = 0; i < kChannels; ++i)
      if (i < channels) output[at.output_index(s) + i * s.bins()] = T(sums[i] / count);
  }
}

template <typename Shapes, typename T, typename A>
__global__ void roi_average_backward_kernel(Shapes s, int64_t threads, const T* grad_output, const A* rois,
                                            A* grad_input) {
  DCNZOO_FOR_EACH(index, threads) {
    constexpr int kChannels = Shapes::kChannelsOfThread;
    const RoiOutput<A> at(s, rois, index, kChannels);
    if (at.map < 0) continue;
    const auto region = s.region(at.roi, at.number, at.y, at.x);
    const int64_t channels = s.channels - at.channel;
    A gradients[kChannels];
    for (int i = 0; i < kChannels; ++i)
      if (i < channels) gradients[i] = A(grad_output[at.output_index(s) + i * s.bins()]) / region.count();
    region.each_sample(at.y, at.x, s.height, s.width, [&](const Lerp<A>& y, const Lerp<A>& x) {
      for (int i = 0; i < kChannels; ++i)
        if (i < channels) roi_scatter(gradients[i], y, x, s.width, grad_input + at.map + i * s.pixels());
    });
  }
}

// shapes_of(A()) returns the Shapes of roi_average_kernel for coordinates of type A.
template <typename ShapesOf>
Tensor roi_average(const RoiShapes& s, const Tensor& input, const Tensor& rois, const ShapesOf& shapes_of) {
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  if (output.numel() == 0) return output;
  const Tensor maps = torch::stable::contiguous(input);
  const Tensor wide_rois = contiguous_as(rois, accumulate_type(input.scalar_type()));
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    using Shapes = decltype(shapes_of(A()));
    const int64_t threads = roi_threads(shapes_of(A()));
    launch("roi_average_kernel", roi_average_kernel<Shapes, T, A>, blocks_for(threads), kThreads, maps,
           shapes_of(A()), threads, data_of<T>(maps), data_of<A>(wide_rois), mutable_data_of<T>(output));
  });
  return output;
}

// The gradient of the input. Summed in the accumulation type: half gradients are rounded only once, at the end.
template <typename ShapesOf>
Tensor roi_average_backward(const RoiShapes& s, const Tensor& grad_output, const Tensor& rois,
                            const ShapesOf& shapes_of) {
  const ScalarType type = grad_output.scalar_type(), wide = accumulate_type(type);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes(), wide);
  if (grad_output.numel() > 0 && grad_input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output), wide_rois = contiguous_as(rois, wide);
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      using Shapes = decltype(shapes_of(A()));
      const int64_t threads = roi_threads(shapes_of(A()));
      launch("roi_average_backward_kernel", roi_average_backward_kernel<Shapes, T, A>, blocks_for(threads),
             kThreads, gradients, shapes_of(A()), threads, data_of<T>(gradients), data_of<A>(wide_rois),
             mutable_data_of<A>(grad_input));
    });
  }
  return torch::stable::to(grad_input, type);
}

}  // namespace dcnzoo
