#include <algorithm>
#include <tuple>

#include "../common/roi_cpu.h"
#include "roi_align_cpu_kernel.h"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

template <typename T>
const RoiAlignKernels<T>& kernels() {
  return roi_align_kernels_dispatched().of<T>();
}

// The tables of an average, built once per task and used for all its channels.
template <typename T>
class AverageTables {
 public:
  RoiAverage<T> of(const RoiAlignShapes& s, const T* roi) {
    const RoiRegion<T> region = s.region(roi);
    y_.clear(), x_.clear(), row_.resize(s.width);
    for (int64_t bin = 0; bin < s.output_h; ++bin) y_.add_weights(region.y, bin, s.height);
    for (int64_t bin = 0; bin < s.output_w; ++bin) x_.add_weights(region.x, bin, s.width);
    int64_t first = s.width, last = -1;
    for (const RoiShare<T>& share : x_.all()) {
      first = std::min(first, share.pixel);
      last = std::max(last, share.pixel);
    }
    return {y_.table(), x_.table(), s.output_h, s.output_w,     s.width,
            s.pixels(), first,      last,       region.count(), row_.data()};
  }

 private:
  RoiShares<T> y_, x_;
  std::vector<T> row_;
};

// The samples of all bins along both axes.
template <typename T>
struct MaximumTables {
  std::vector<RoiSamples<T>> y, x;

  void fill(const RoiAlignShapes& s, const T* roi) {
    const RoiRegion<T> region = s.region(roi);
    y.clear(), x.clear();
    for (int64_t bin = 0; bin < s.output_h; ++bin) y.emplace_back(region.y, bin, s.height);
    for (int64_t bin = 0; bin < s.output_w; ++bin) x.emplace_back(region.x, bin, s.width);
  }
};

template <typename T>
RoiAlignOutputs forward(const RoiAlignShapes& s, const Tensor& input_any, const Tensor& rois) {
  const Tensor input = contiguous_as(input_any, kTypeOf<T>);
  const RoiTasks<T> tasks("roi_align", s, rois);
  RoiAlignOutputs out(s, input);
  const T* const maps = input.const_data_ptr<T>();
  T* const output = out.output.mutable_data_ptr<T>();
  T* const argmax_y = out.argmax_y.mutable_data_ptr<T>();
  T* const argmax_x = out.argmax_x.mutable_data_ptr<T>();
  if (s.average)
    tasks.template each<AverageTables<T>>(kRoiChannels, [&](auto& tables, const RoiTask<T>& task) {
      kernels<T>().forward(tables.of(s, task.roi), maps + task.map, task.channels, output + task.bin);
    });
  else
    tasks.template each<MaximumTables<T>>(kRoiChannels, [&](auto& tables, const RoiTask<T>& task) {
      tables.fill(s, task.roi);
      int64_t bin = task.bin;
      for (int64_t channel = 0; channel < task.channels; ++channel)
        for (const RoiSamples<T>& y : tables.y)
          for (const RoiSamples<T>& x : tables.x) {
            const RoiMaximum<T> best = roi_maximum(maps + task.map + channel * s.pixels(), y, x);
            output[bin] = best.value, argmax_y[bin] = best.y, argmax_x[bin++] = best.x;
          }
    });
  out.output = torch::stable::to(out.output, input_any.scalar_type());
  return out;
}

// Adds a gradient to the pixels around the sample that is the maximum.
template <typename T>
void scatter_maximum(const RoiAlignShapes& s, T gradient, T y, T x, T* map) {
  if (!roi_inside(y, s.height) || !roi_inside(x, s.width)) return;
  each_pixel(lerp_at(y, s.height), lerp_at(x, s.width), s.width,
             [&](int64_t pixel, T weight) { map[pixel] += weight * gradient; });
}

template <typename T>
Tensor backward(const RoiAlignShapes& s, const Tensor& grad_any, const Tensor& rois, const Tensor& y_any,
                const Tensor& x_any) {
  const Tensor grad_output = contiguous_as(grad_any, kTypeOf<T>);
  const Tensor argmax_y = contiguous_as(y_any, kTypeOf<T>), argmax_x = contiguous_as(x_any, kTypeOf<T>);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes());
  const RoiTasks<T> tasks("roi_align", s, rois);
  const T* const grad = grad_output.const_data_ptr<T>();
  const T* const at_y = argmax_y.const_data_ptr<T>();
  const T* const at_x = argmax_x.const_data_ptr<T>();
  T* const maps = grad_input.mutable_data_ptr<T>();
  tasks.template each_by_image<AverageTables<T>>(kRoiChannels, [&](auto& tables, const RoiTask<T>& task) {
    if (s.average)
      return kernels<T>().backward(tables.of(s, task.roi), grad + task.bin, task.channels, maps + task.map);
    for (int64_t i = 0; i < task.channels * s.bins(); ++i)
      scatter_maximum(s, grad[task.bin + i], at_y[task.bin + i], at_x[task.bin + i],
                      maps + task.map + i / s.bins() * s.pixels());
  });
  return torch::stable::to(grad_input, grad_any.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t output_h,
                                                 int64_t output_w, double spatial_scale,
                                                 int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
  const bool is_double = input.scalar_type() == ScalarType::Double;
  const RoiAlignOutputs out = (is_double ? forward<double> : forward<float>)(shapes, input, rois);
  return {out.output, out.argmax_y, out.argmax_x};
}

Tensor roi_align_backward_cpu(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                              const Tensor& argmax_x, std::vector<int64_t> input_size, double spatial_scale,
                              int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes = check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size,
                                                         spatial_scale, sampling_ratio, pool_mode, aligned);
  const auto run = grad_output.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(shapes, grad_output, rois, argmax_y, argmax_x);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&dcnzoo::roi_align_cpu));
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cpu));
}
