#include "../common/memory_format.h"
#include "../common/roi_cpu.h"
#include "roi_align_cpu_kernel.h"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

// The type of maps and bins that the kernels of T and S read.
template <typename T, typename S>
constexpr ScalarType kStoredTypeOf = sizeof(S) == sizeof(BFloat16Bits) ? ScalarType::BFloat16 : kTypeOf<T>;

bool is_bfloat16(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::BFloat16; }

// The tables of an average, built once per task and used for all its channels.
template <typename T>
class AverageTables {
 public:
  RoiAverage<T> of(const RoiAlignShapes& s, const T* roi) {
    const RoiRegion<T> region = s.region(roi);
    y_.clear(), x_.clear();
    for (int64_t bin = 0; bin < s.output_h; ++bin) y_.add_weights(region.y, bin, s.height);
    for (int64_t bin = 0; bin < s.output_w; ++bin) x_.add_weights(region.x, bin, s.width);
    int64_t first = x_.all().empty() ? 0 : s.width, last = -1;
    for (const RoiShare<T>& share : x_.all()) {
      first = std::min(first, share.pixel);
      last = std::max(last, share.pixel);
    }
    const int64_t tile_rows = std::max<int64_t>(kRoiTileBins / s.output_w, 1);
    const auto grow = [](std::vector<T>& scratch, int64_t size) {
      if (int64_t(scratch.size()) < size) scratch.resize(size);
      return scratch.data();
    };
    return {y_.table(),
            x_.table(),
            s.output_h,
            s.output_w,
            s.width,
            s.pixels(),
            first,
            last,
            region.count(),
            tile_rows,
            grow(row_, (last + kRoiChannels + 1 - first) * kRoiBlockChannels),
            grow(tile_, 2 * std::min(tile_rows, s.output_h) * s.output_w * kRoiBlockChannels)};
  }

 private:
  RoiShares<T> y_, x_;
  std::vector<T> row_, tile_;
};

// Channels-last maps are read pixel by pixel: a task has all channels of a RoI.
template <typename T, typename S>
Tensor average(const RoiAlignShapes& s, const Tensor& input_any, const Tensor& rois) {
  const Tensor typed = as_type(input_any, kStoredTypeOf<T, S>);
  const bool by_pixel = wants_channels_last(typed) && s.channels >= kRoiChannels;
  const Tensor input = by_pixel ? typed : contiguous_as(typed, typed.scalar_type());
  const RoiTasks<T> tasks("roi_align", s, rois);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const S* const maps = data_of<S>(input);
  S* const out = mutable_data_of<S>(output);
  const auto& kernels = roi_align_kernels_dispatched().of<T, S>();
  const auto pool_task = [&](AverageTables<T>& tables, const RoiTask<T>& task) {
    const RoiAverage<T> roi = tables.of(s, task.roi);
    if (by_pixel)
      kernels.forward_by_pixel(roi, maps + task.map, s.channels, task.channels, out + task.bin);
    else
      kernels.forward(roi, maps + task.map, task.channels, out + task.bin);
  };
  tasks.template each<AverageTables<T>>(by_pixel ? s.channels : kRoiChannels, pool_task);
  return as_type(output, input_any.scalar_type());
}

template <typename T, typename S>
Tensor average_backward(const RoiAlignShapes& s, const Tensor& grad_any, const Tensor& rois) {
  const Tensor grad_output = contiguous_as(grad_any, kStoredTypeOf<T, S>);
  const RoiTasks<T> tasks("roi_align", s, rois);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes(), kTypeOf<T>);
  const S* const grad = data_of<S>(grad_output);
  T* const maps = grad_input.mutable_data_ptr<T>();
  const auto kernel = roi_align_kernels_dispatched().of<T, S>().backward;
  const auto pool_task = [&](AverageTables<T>& tables, const RoiTask<T>& task) {
    kernel(tables.of(s, task.roi), grad + task.bin, task.channels, maps + task.map);
  };
  tasks.template each_by_image<AverageTables<T>>(kRoiChannels, pool_task);
  return as_type(grad_input, grad_any.scalar_type());
}

Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                     double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignShapes shapes =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, aligned);
  const auto pool = is_double(input)     ? average<double, double>
                    : is_bfloat16(input) ? average<float, BFloat16Bits>
                                         : average<float, float>;
  return pool(shapes, input, rois);
}

Tensor roi_align_backward_cpu(const Tensor& grad_output, const Tensor& rois, std::vector<int64_t> input_size,
                              double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignShapes shapes =
      check_roi_align_backward(grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned);
  const auto pool = is_double(grad_output)     ? average_backward<double, double>
                    : is_bfloat16(grad_output) ? average_backward<float, BFloat16Bits>
                                               : average_backward<float, float>;
  return pool(shapes, grad_output, rois);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&dcnzoo::roi_align_cpu));
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cpu));
}
