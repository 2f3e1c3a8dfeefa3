// deform_roi_pool on CUDA. Half types are not converted in memory; their coordinates, weights and sums are float.
#include <tuple>

#include "../common/lane_sums.cuh"
#include "../common/roi.cuh"
#include "deform_roi_pool_checks.h"

namespace dcnzoo {
namespace {

// The shapes of roi_average_kernel.
template <typename A>
struct MovedBins : DeformRoiPoolShapes {
  const A* offset;  // [rois][x, y][bins]

  __device__ RoiRegion<A> region(const A* roi, int64_t number, int64_t y_bin, int64_t x_bin) const {
    const A* shift = offset + 2 * number * bins() + y_bin * output_w + x_bin;
    return {y_axis(roi).moved(shift[bins()]), x_axis(roi).moved(shift[0])};
  }
};

// A column of threads sums over the channels of a bin in a fixed order.
template <typename T, typename A>
__global__ void grad_offset_kernel(MovedBins<A> s, int64_t count, const T* grad_output, const T* input,
                                   const A* rois, A* grad_offset) {
  const int64_t bins = s.bins();
  const int lane = threadIdx.y, column = threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * kSumColumns;
  for (int64_t first = int64_t(blockIdx.x) * kSumColumns; first < count; first += step) {
    const int64_t index = first + column < count ? first + column : 0, number = index / bins;
    const int64_t y_bin = index % bins / s.output_w, x_bin = index % bins % s.output_w;
    const A* roi = rois + s.kColumns * number;
    const A x_reach = s.x_axis(roi).reach, y_reach = s.y_axis(roi).reach;
    const RoiRegion<A> region = s.region(roi, number, y_bin, x_bin);
    const RoiSamples<A> ys(region.y, y_bin, s.height), xs(region.x, x_bin, s.width);
    const int64_t maps = roi_map(s, roi, 0), end = first + column < count && maps >= 0 ? s.channels : 0;
    A along[2] = {};  // x and y
    for (int64_t channel = lane; channel < end; channel += kSumLanes) {
      const T* map = input + maps + channel * s.pixels();
      // If no sample reads two pixels on an axis, moving the bin has no effect: an Inf gradient must not give NaN.
      A slope_x = A(0), slope_y = A(0);
      bool moves_x = false, moves_y = false;
      each_sample_of(ys, xs, [&](const Lerp<A>& y, const Lerp<A>& x) {
        if (x.reads_two()) slope_x += roi_sample(map, y, {x.low, x.high, A(-1), A(1)}, s.width);
        if (y.reads_two()) slope_y += roi_sample(map, {y.low, y.high, A(-1), A(1)}, x, s.width);
        moves_x |= x.reads_two(), moves_y |= y.reads_two();
      });
      const A gradient = A(grad_output[(number * s.channels + channel) * bins + index % bins]);
      if (moves_x && x_reach != A(0)) along[0] += gradient * slope_x;
      if (moves_y && y_reach != A(0)) along[1] += gradient * slope_y;
    }
    sum_over_lanes(along, first + column < count, [&](int axis, A total) {
      const A reach = axis == 0 ? x_reach : y_reach;
      grad_offset[(number * 2 + axis) * bins + index % bins] = total * (reach / region.count());
    });
  }
}

template <typename A>
MovedBins<A> moved_bins(const DeformRoiPoolShapes& s, const Tensor& offset, A) {
  return {s, data_of<A>(offset)};
}

Tensor deform_roi_pool_cuda(const Tensor& input, const Tensor& rois, const Tensor& offset, int64_t output_h,
                            int64_t output_w, double spatial_scale, int64_t sampling_ratio, double gamma) {
  const DeformRoiPoolShapes s =
      check_deform_roi_pool(input, rois, offset, output_h, output_w, spatial_scale, sampling_ratio, gamma);
  const Tensor wide_offset = contiguous_as(offset, accumulate_type(input.scalar_type()));
  return roi_average(s, input, rois, [&](auto zero) { return moved_bins(s, wide_offset, zero); });
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                         const Tensor& rois, const Tensor& offset,
                                                         double spatial_scale, int64_t sampling_ratio,
                                                         double gamma, const std::vector<bool>& output_mask) {
  const DeformRoiPoolShapes s = check_deform_roi_pool_backward(
      grad_output, input, rois, offset, spatial_scale, sampling_ratio, gamma, output_mask);
  const ScalarType type = input.scalar_type(), wide = accumulate_type(type);
  const Tensor wide_offset = contiguous_as(offset, wide);
  const auto shapes_of = [&](auto zero) { return moved_bins(s, wide_offset, zero); };
  const Tensor grad_input = output_mask[0] ? roi_average_backward(s, grad_output, rois, shapes_of)
                                           : torch::stable::new_empty(input, {0});
  const Tensor grad_offset = new_gradient(input, output_mask[1], offset, wide);
  if (output_mask[1] && grad_output.numel() > 0 && input.numel() > 0) {
    const Tensor gradients = torch::stable::contiguous(grad_output), maps = torch::stable::contiguous(input);
    const Tensor wide_rois = contiguous_as(rois, wide);
    const int64_t bins = s.rois * s.bins();
    dispatch_floating(type, [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      launch("grad_offset_kernel", grad_offset_kernel<T, A>, blocks_for(bins * kSumLanes),
             dim3(kSumColumns, kSumLanes), maps, shapes_of(A()), bins, data_of<T>(gradients),
             data_of<T>(maps), data_of<A>(wide_rois), mutable_data_of<A>(grad_offset));
    });
  }
  return {grad_input, torch::stable::to(grad_offset, offset.scalar_type())};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&dcnzoo::deform_roi_pool_cuda));
  m.impl("_deform_roi_pool_backward", TORCH_BOX(&dcnzoo::deform_roi_pool_backward_cuda));
}
