#include "../common/roi_cpu.h"
#include "roi_align_rotated_cpu_kernel.h"
#include "roi_align_rotated_checks.h"

namespace dcnzoo {
namespace {

template <typename T>
const RoiAlignRotatedKernels<T>& kernels() {
  return roi_align_rotated_kernels_dispatched().of<T>();
}

// Channels per task: enough to make up for the cost of a region's table, which every task builds.
constexpr int64_t kForwardChannels = 256;
constexpr int64_t kBackwardChannels = 32;  // of an image; the thread owns their gradients

// The pixels and weights of each bin of a region.
template <typename T>
class AverageTable {
 public:
  RotatedRoiAverage<T> of(const RoiAlignRotatedShapes& s, const T* roi) {
    const RotatedRoi<T> region = s.region(roi);
    shares_.clear(), begins_.assign(1, 0);
    for (int64_t bin = 0; bin < s.bins(); ++bin) {
      region.each_sample(
          bin / s.output_w, bin % s.output_w, s.height, s.width, [&](const Lerp<T>& y, const Lerp<T>& x) {
            each_pixel(y, x, s.width, [&](int64_t pixel, T weight) { shares_.push_back({pixel, weight}); });
          });
      begins_.push_back(int64_t(shares_.size()));
    }
    return {{shares_.data(), begins_.data()}, s.bins(), s.pixels(), region.count()};
  }

 private:
  std::vector<RoiShare<T>> shares_;
  std::vector<int64_t> begins_;
};

template <typename T>
Tensor forward(const RoiAlignRotatedShapes& s, const Tensor& input_any, const Tensor& rois) {
  const Tensor input = contiguous_as(input_any, kTypeOf<T>);
  const RoiTasks<T> tasks("roi_align_rotated", s, rois);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const T* const maps = input.const_data_ptr<T>();
  T* const out = output.mutable_data_ptr<T>();
  tasks.template each<AverageTable<T>>(kForwardChannels, [&](auto& table, const RoiTask<T>& task) {
    kernels<T>().forward(table.of(s, task.roi), maps + task.map, task.channels, out + task.bin);
  });
  return torch::stable::to(output, input_any.scalar_type());
}

template <typename T>
Tensor backward(const RoiAlignRotatedShapes& s, const Tensor& grad_any, const Tensor& rois) {
  const Tensor grad_output = contiguous_as(grad_any, kTypeOf<T>);
  const RoiTasks<T> tasks("roi_align_rotated", s, rois);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes());
  const T* const grad = grad_output.const_data_ptr<T>();
  T* const maps = grad_input.mutable_data_ptr<T>();
  tasks.template each_by_image<AverageTable<T>>(kBackwardChannels, [&](auto& table, const RoiTask<T>& task) {
    kernels<T>().backward(table.of(s, task.roi), grad + task.bin, task.channels, maps + task.map);
  });
  return torch::stable::to(grad_input, grad_any.scalar_type());
}

Tensor roi_align_rotated_cpu(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                             double spatial_scale, int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes shapes = check_roi_align_rotated(input, rois, output_h, output_w, spatial_scale,
                                                               sampling_ratio, aligned, clockwise);
  const bool is_double = input.scalar_type() == ScalarType::Double;
  return (is_double ? forward<double> : forward<float>)(shapes, input, rois);
}

Tensor roi_align_rotated_backward_cpu(const Tensor& grad_output, const Tensor& rois,
                                      std::vector<int64_t> input_size, double spatial_scale,
                                      int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes shapes = check_roi_align_rotated_backward(
      grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned, clockwise);
  const bool is_double = grad_output.scalar_type() == ScalarType::Double;
  return (is_double ? backward<double> : backward<float>)(shapes, grad_output, rois);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&dcnzoo::roi_align_rotated_cpu));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::roi_align_rotated_backward_cpu));
}
