// deform_roi_pool on CUDA. Half types are not converted in memory; their coordinates, weights and sums are float.
#include <tuple>

#include "../common/dispatch.cuh"
#include "../common/lane_sums.cuh"
#include "../common/roi.cuh"
#include "deform_roi_pool_checks.h"

namespace dcnzoo {
namespace {

// One bin of one RoI, for all of its channels.
template <typename A>
struct MovedBin {
  int64_t image, y_bin, x_bin;
  RoiAxis<A> y_axis, x_axis;
  RoiSpan ys, xs;  // the samples on the map; none if the RoI's image is not in the batch
  A y_reach, x_reach, count;
};

// index: the flat index of a bin over all RoIs
template <typename A>
__device__ MovedBin<A> bin_at(const DeformRoiPoolShapes& s, const A* rois, const A* offset, int64_t index) {
  const int64_t bins = s.output_h * s.output_w, k = index / bins, inside = index % bins;
  const A* roi = rois + 5 * k;
  const A* shift = offset + 2 * k * bins + inside;
  const DeformRoiAxis<A> y = s.y_axis(roi), x = s.x_axis(roi);
  const bool valid = roi[0] >= A(0) && roi[0] < A(s.batch);
  MovedBin<A> bin;
  bin.image = valid ? int64_t(roi[0]) : 0;
  bin.y_bin = inside / s.output_w;
  bin.x_bin = inside % s.output_w;
  bin.y_axis = moved(y, shift[bins]);
  bin.x_axis = moved(x, shift[0]);
  bin.ys = valid ? roi_span(bin.y_axis, bin.y_bin, s.height) : RoiSpan{0, 0};
  bin.xs = roi_span(bin.x_axis, bin.x_bin, s.width);
  bin.y_reach = y.reach;
  bin.x_reach = x.reach;
  bin.count = roi_count(y.grid, x.grid);
  return bin;
}

// Calls visit(y, x) with the interpolation weights of each sample.
template <typename A, typename Visit>
__device__ void for_each_sample(const DeformRoiPoolShapes& s, const MovedBin<A>& bin, const Visit& visit) {
  for (int64_t iy = bin.ys.begin; iy < bin.ys.end; ++iy) {
    const Lerp<A> y = lerp_at(roi_coordinate(bin.y_axis, bin.y_bin, iy), s.height);
    for (int64_t ix = bin.xs.begin; ix < bin.xs.end; ++ix)
      visit(y, lerp_at(roi_coordinate(bin.x_axis, bin.x_bin, ix), s.width));
  }
}

// The flat index, over all RoIs, of the bin of an output [rois][channels][bins].
__device__ inline int64_t bin_of_output(const DeformRoiPoolShapes& s, int64_t index) {
  const int64_t bins = s.output_h * s.output_w;
  return index / bins / s.channels * bins + index % bins;
}

template <typename A>
__device__ int64_t map_of(const DeformRoiPoolShapes& s, const MovedBin<A>& bin, int64_t channel) {
  return (bin.image * s.channels + channel) * s.height * s.width;
}

template <typename T, typename A>
__global__ void deform_roi_pool_kernel(DeformRoiPoolShapes s, int64_t count, const T* input, const A* rois,
                                       const A* offset, T* output) {
  const int64_t bins = s.output_h * s.output_w;
  DCNZOO_FOR_EACH(index, count) {
    const MovedBin<A> bin = bin_at(s, rois, offset, bin_of_output(s, index));
    const T* map = input + map_of(s, bin, index / bins % s.channels);
    A sum = A(0);
    for_each_sample(s, bin,
                    [&](const Lerp<A>& y, const Lerp<A>& x) { sum += roi_sample(map, y, x, s.width); });
    output[index] = T(sum / bin.count);
  }
}

template <typename T, typename A>
__global__ void grad_input_kernel(DeformRoiPoolShapes s, int64_t count, const T* grad_output, const A* rois,
                                  const A* offset, A* grad_input) {
  const int64_t bins = s.output_h * s.output_w;
  DCNZOO_FOR_EACH(index, count) {
    const MovedBin<A> bin = bin_at(s, rois, offset, bin_of_output(s, index));
    A* map = grad_input + map_of(s, bin, index / bins % s.channels);
    const A gradient = A(grad_output[index]) / bin.count;
    for_each_sample(s, bin,
                    [&](const Lerp<A>& y, const Lerp<A>& x) { roi_scatter(gradient, y, x, s.width, map); });
  }
}

// A column of threads sums over the channels of a bin in a fixed order.
template <typename T, typename A>
__global__ void grad_offset_kernel(DeformRoiPoolShapes s, int64_t count, const T* grad_output, const T* input,
                                   const A* rois, const A* offset, A* grad_offset) {
  const int64_t bins = s.output_h * s.output_w;
  const int lane = threadIdx.y, column = threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kSumColumns;
  for (int64_t first = int64_t(blockIdx.x) * kSumColumns; first < count; first += step) {
    const int64_t index = first + column;
    const MovedBin<A> bin = bin_at(s, rois, offset, index < count ? index : 0);
    const T* gradients = grad_output + (index / bins * s.channels) * bins + index % bins;
    A along[2] = {};  // x and y
    for (int64_t channel = lane; index < count && channel < s.channels; channel += kSumLanes) {
      const T* map = input + map_of(s, bin, channel);
      // If no sample reads two pixels on an axis, moving the bin has no effect: an Inf gradient must not give NaN.
      A slope_x = A(0), slope_y = A(0);
      bool moves_x = false, moves_y = false;
      for_each_sample(s, bin, [&](const Lerp<A>& y, const Lerp<A>& x) {
        if (x.reads_two()) slope_x += roi_sample(map, y, {x.low, x.high, A(-1), A(1)}, s.width);
        if (y.reads_two()) slope_y += roi_sample(map, {y.low, y.high, A(-1), A(1)}, x, s.width);
        moves_x |= x.reads_two(), moves_y |= y.reads_two();
      });
      const A gradient = A(gradients[channel * bins]);
      if (moves_x && bin.x_reach != A(0)) along[0] += gradient * slope_x;
      if (moves_y && bin.y_reach != A(0)) along[1] += gradient * slope_y;
    }
    sum_over_lanes(along, index < count, [&](int axis, A total) {
      const A reach = axis == 0 ? bin.x_reach : bin.y_reach;
      grad_offset[(index / bins * 2 + axis) * bins + index % bins] = total * (reach / bin.count);
    });
  }
}

Tensor deform_roi_pool_cuda(const Tensor& input, const Tensor& rois, const Tensor& offset, int64_t output_h,
                            int64_t output_w, double spatial_scale, int64_t sampling_ratio, double gamma) {
  const DeformRoiPoolShapes s =
      check_deform_roi_pool(input, rois, offset, output_h, output_w, spatial_scale, sampling_ratio, gamma);
  const ScalarType wide = accumulate_type(input.scalar_type());
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  if (output.numel() == 0) return output;
  const Tensor maps = torch::stable::contiguous(input);
  const Tensor wide_rois = contiguous_as(rois, wide), wide_offset = contiguous_as(offset, wide);
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch("deform_roi_pool_kernel", deform_roi_pool_kernel<T, A>, blocks_for(output.numel()), kThreads, maps,
           s, output.numel(), data_of<T>(maps), data_of<A>(wide_rois), data_of<A>(wide_offset),
           mutable_data_of<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                         const Tensor& rois, const Tensor& offset,
                                                         double spatial_scale, int64_t sampling_ratio,
                                                         double gamma, const std::vector<bool>& output_mask) {
  const DeformRoiPoolShapes s = check_deform_roi_pool_backward(
      grad_output, input, rois, offset, spatial_scale, sampling_ratio, gamma, output_mask);
  const ScalarType type = input.scalar_type(), wide = accumulate_type(type);
  // In the accumulation type: half gradients are rounded only once, at the end.
  const Tensor grad_input = new_gradient(input, output_mask[0], input, wide);
  const Tensor grad_offset = new_gradient(input, output_mask[1], offset, wide);
  if (grad_output.numel() > 0 && input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output);
    const Tensor maps = output_mask[1] ? torch::stable::contiguous(input) : input;
    const Tensor wide_rois = contiguous_as(rois, wide), wide_offset = contiguous_as(offset, wide);
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      const int64_t count = gradients.numel(), bins = s.rois * s.output_h * s.output_w;
      if (output_mask[0])
        launch("grad_input_kernel", grad_input_kernel<T, A>, blocks_for(count), kThreads, gradients, s, count,
               data_of<T>(gradients), data_of<A>(wide_rois), data_of<A>(wide_offset),
               mutable_data_of<A>(grad_input));
      if (output_mask[1])
        launch("grad_offset_kernel", grad_offset_kernel<T, A>, blocks_for(bins * kSumLanes),
               dim3(kSumColumns, kSumLanes), maps, s, bins, data_of<T>(gradients), data_of<T>(maps),
               data_of<A>(wide_rois), data_of<A>(wide_offset), mutable_data_of<A>(grad_offset));
    });
  }
  return {torch::stable::to(grad_input, type), torch::stable::to(grad_offset, offset.scalar_type())};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&dcnzoo::deform_roi_pool_cuda));
  m.impl("_deform_roi_pool_backward", TORCH_BOX(&dcnzoo::deform_roi_pool_backward_cuda));
}
