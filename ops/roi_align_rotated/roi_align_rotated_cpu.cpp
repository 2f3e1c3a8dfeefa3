#include "../common/parallel.h"
#include "roi_align_rotated_cpu_kernel.h"
#include "roi_align_rotated_checks.h"

namespace dcnzoo {
namespace {

using Shapes = RoiAlignRotatedShapes;

template <typename T>
const RoiAlignRotatedKernels<T>& kernels() {
  return roi_align_rotated_kernels_dispatched().of<T>();
}

// Channels per task: enough to make up for the cost of a region's table, which every task builds.
constexpr int64_t kForwardChannels = 256;
constexpr int64_t kBackwardChannels = 32;  // of an image; the thread owns their gradients

// One thread's table: the pixels and weights of each bin of a region.
template <typename T>
class AveragePlan {
 public:
  explicit AveragePlan(const Shapes& shapes) : shapes_(shapes) {}

  RotatedRoiAverage<T> of(const T* roi) {
    const Shapes& s = shapes_;
    const RotatedRoi<T> region = s.region(roi);
    shares_.clear(), begins_.assign(1, 0);
    for (int64_t i = 0; i < s.output_h; ++i)
      for (int64_t j = 0; j < s.output_w; ++j) {
        each_rotated_sample(region, i, j, s.height, s.width, [&](const Lerp<T>& y, const Lerp<T>& x) {
          each_pixel(y, x, s.width, [&](int64_t pixel, T weight) { shares_.push_back({pixel, weight}); });
        });
        begins_.push_back(int64_t(shares_.size()));
      }
    return {{shares_.data(), begins_.data()},
            s.output_h * s.output_w,
            s.height * s.width,
            roi_count(region.down, region.across)};
  }

 private:
  const Shapes& shapes_;
  std::vector<RoiShare<T>> shares_;
  std::vector<int64_t> begins_;
};

template <typename T>
Tensor forward(const Tensor& input_any, const Tensor& rois_any, const Shapes& s, ScalarType type) {
  const Tensor input = contiguous_as(input_any, type), rois = contiguous_as(rois_any, type);
  Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const T* roi = rois.const_data_ptr<T>();
  const T* maps = input.const_data_ptr<T>();
  T* out = output.mutable_data_ptr<T>();
  const std::vector<int64_t> images =
      images_of_rois("roi_align_rotated", roi, s.rois, s.batch, kRotatedRoiFields);
  const int64_t pixels = s.height * s.width, bins = s.output_h * s.output_w;
  const int64_t blocks = ceil_div(s.channels, kForwardChannels);
  parallel_for(s.rois * blocks, 1, [&](int64_t begin, int64_t end) {
    AveragePlan<T> plan(s);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / blocks, first = task % blocks * kForwardChannels;
      const int64_t channels = std::min(kForwardChannels, s.channels - first);
      kernels<T>().forward(plan.of(roi + kRotatedRoiFields * k),
                           maps + (images[k] * s.channels + first) * pixels, channels,
                           out + (k * s.channels + first) * bins);
    }
  });
  return torch::stable::to(output, input_any.scalar_type());
}

template <typename T>
Tensor backward(const Tensor& grad_any, const Tensor& rois_any, const Shapes& s, ScalarType type) {
  const Tensor grad_output = contiguous_as(grad_any, type), rois = contiguous_as(rois_any, type);
  Tensor grad_input = torch::stable::new_zeros(grad_output, {s.batch, s.channels, s.height, s.width});
  const T* grad = grad_output.const_data_ptr<T>();
  const T* roi = rois.const_data_ptr<T>();
  T* maps = grad_input.mutable_data_ptr<T>();
  const std::vector<int64_t> images =
      images_of_rois("roi_align_rotated", roi, s.rois, s.batch, kRotatedRoiFields);
  const auto rois_of = rois_by_image(images, s.batch);
  const int64_t pixels = s.height * s.width, bins = s.output_h * s.output_w;
  const int64_t blocks = ceil_div(s.channels, kBackwardChannels);
  parallel_for(s.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    AveragePlan<T> plan(s);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, first = task % blocks * kBackwardChannels;
      const int64_t channels = std::min(kBackwardChannels, s.channels - first);
      for (int64_t k : rois_of[image])
        kernels<T>().backward(plan.of(roi + kRotatedRoiFields * k), grad + (k * s.channels + first) * bins,
                              channels, maps + (image * s.channels + first) * pixels);
    }
  });
  return torch::stable::to(grad_input, grad_any.scalar_type());
}

Tensor roi_align_rotated_cpu(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                             double spatial_scale, int64_t sampling_ratio, bool aligned, bool clockwise) {
  const Shapes shapes = check_roi_align_rotated("input", input, rois, sizes_of(input), output_h, output_w,
                                                spatial_scale, sampling_ratio, aligned, clockwise);
  const ScalarType type = accumulate_type(input.scalar_type());
  return (type == ScalarType::Double ? forward<double> : forward<float>)(input, rois, shapes, type);
}

Tensor roi_align_rotated_backward_cpu(const Tensor& grad_output, const Tensor& rois,
                                      std::vector<int64_t> input_size, double spatial_scale,
                                      int64_t sampling_ratio, bool aligned, bool clockwise) {
  const Shapes shapes = check_roi_align_rotated_backward(grad_output, rois, input_size, spatial_scale,
                                                         sampling_ratio, aligned, clockwise);
  const ScalarType type = accumulate_type(grad_output.scalar_type());
  return (type == ScalarType::Double ? backward<double> : backward<float>)(grad_output, rois, shapes, type);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_align_rotated", TORCH_BOX(&dcnzoo::roi_align_rotated_cpu));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::roi_align_rotated_backward_cpu));
}
