#include <algorithm>
#include <tuple>

#include "../common/parallel.h"
#include "roi_align_cpu_kernel.h"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

template <typename T>
const RoiAlignKernels<T>& kernels() {
  return roi_align_kernels_dispatched().of<T>();
}

// One thread's tables, built once per task and used for all its channels.
template <typename T>
class AveragePlan {
 public:
  explicit AveragePlan(const RoiAlignShapes& shapes) : shapes_(shapes), row_(shapes.width) {}

  RoiAverage<T> of(const T* roi) {
    const RoiAxis<T> y = shapes_.y_axis(roi), x = shapes_.x_axis(roi);
    y_.clear(), x_.clear();
    for (int64_t bin = 0; bin < shapes_.output_h; ++bin) y_.add_weights(y, bin, shapes_.height);
    for (int64_t bin = 0; bin < shapes_.output_w; ++bin) x_.add_weights(x, bin, shapes_.width);
    int64_t first = shapes_.width, last = -1;
    for (const RoiShare<T>& share : x_.all()) {
      first = std::min(first, share.pixel);
      last = std::max(last, share.pixel);
    }
    return {y_.table(),
            x_.table(),
            shapes_.output_h,
            shapes_.output_w,
            shapes_.width,
            shapes_.height * shapes_.width,
            first,
            last,
            roi_count(y, x),
            row_.data()};
  }

 private:
  RoiAlignShapes shapes_;
  RoiShares<T> y_, x_;
  std::vector<T> row_;
};

// The samples of all bins of a RoI along one axis, for all of its channels.
template <typename T>
class SampleTable {
 public:
  struct Bin {
    const RoiSample<T>* samples;  // only those in the span
    RoiSpan span;
    int64_t all;

    int64_t count() const { return all; }
    const RoiSample<T>& operator[](int64_t sample) const { return samples[sample - span.begin]; }
  };

  void fill(const RoiAxis<T>& axis, int64_t bins, int64_t size) {
    samples_.clear(), begins_.clear(), spans_.clear();
    count_ = axis.samples;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const RoiSamples<T> samples(axis, bin, size);
      begins_.push_back(samples_.size());
      spans_.push_back(samples.span);
      for (int64_t i = samples.span.begin; i < samples.span.end; ++i) samples_.push_back(samples[i]);
    }
  }

  Bin bin(int64_t i) const { return {samples_.data() + begins_[i], spans_[i], count_}; }

 private:
  std::vector<RoiSample<T>> samples_;
  std::vector<size_t> begins_;
  std::vector<RoiSpan> spans_;
  int64_t count_ = 0;
};

template <typename T>
RoiAlignOutputs forward(const Tensor& input_any, const Tensor& rois_any, const RoiAlignShapes& s,
                        ScalarType type) {
  const Tensor input = contiguous_as(input_any, type), rois = contiguous_as(rois_any, type);
  const std::vector<int64_t> sizes{s.rois, s.channels, s.output_h, s.output_w};
  const std::vector<int64_t> argmax_sizes = s.average ? std::vector<int64_t>{0} : sizes;
  Tensor output = torch::stable::new_empty(input, sizes);
  Tensor argmax_y = torch::stable::new_empty(input, argmax_sizes);
  Tensor argmax_x = torch::stable::new_empty(input, argmax_sizes);
  const T* roi = rois.const_data_ptr<T>();
  const T* maps = input.const_data_ptr<T>();
  T* out = output.mutable_data_ptr<T>();
  T* out_y = argmax_y.mutable_data_ptr<T>();
  T* out_x = argmax_x.mutable_data_ptr<T>();
  const std::vector<int64_t> images = images_of_rois("roi_align", roi, s.rois, s.batch);
  const int64_t pixels = s.height * s.width, bins = s.output_h * s.output_w;
  const int64_t blocks = ceil_div(s.channels, kRoiChannels);
  parallel_for(blocks * s.rois, 1, [&](int64_t begin, int64_t end) {
    AveragePlan<T> plan(s);
    SampleTable<T> y, x;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task % s.rois, first = task / s.rois * kRoiChannels;
      const int64_t channels = std::min(kRoiChannels, s.channels - first);
      const T* block_maps = maps + (images[k] * s.channels + first) * pixels;
      int64_t at = (k * s.channels + first) * bins;
      if (s.average) {
        kernels<T>().forward(plan.of(roi + 5 * k), block_maps, channels, out + at);
        continue;
      }
      y.fill(s.y_axis(roi + 5 * k), s.output_h, s.height);
      x.fill(s.x_axis(roi + 5 * k), s.output_w, s.width);
      for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t i = 0; i < s.output_h; ++i)
          for (int64_t j = 0; j < s.output_w; ++j, ++at) {
            const RoiMaximum<T> best =
                roi_maximum<T>(block_maps + channel * pixels, s.width, y.bin(i), x.bin(j));
            out[at] = best.value, out_y[at] = best.y, out_x[at] = best.x;
          }
    }
  });
  return {torch::stable::to(output, input_any.scalar_type()), argmax_y, argmax_x};
}

// Adds a gradient to the pixels around the sample that is the maximum.
template <typename T>
void scatter_maximum(const RoiAlignShapes& s, T gradient, T y, T x, T* map) {
  if (!roi_inside(y, s.height) || !roi_inside(x, s.width)) return;
  each_pixel(lerp_at(y, s.height), lerp_at(x, s.width), s.width,
             [&](int64_t pixel, T weight) { map[pixel] += weight * gradient; });
}

template <typename T>
Tensor backward(const Tensor& grad_any, const Tensor& rois_any, const Tensor& y_any, const Tensor& x_any,
                const RoiAlignShapes& s, ScalarType type) {
  const Tensor grad_output = contiguous_as(grad_any, type), rois = contiguous_as(rois_any, type);
  const Tensor argmax_y = contiguous_as(y_any, type), argmax_x = contiguous_as(x_any, type);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, {s.batch, s.channels, s.height, s.width});
  const T* grad = grad_output.const_data_ptr<T>();
  const T* roi = rois.const_data_ptr<T>();
  const T* at_y = argmax_y.const_data_ptr<T>();
  const T* at_x = argmax_x.const_data_ptr<T>();
  T* maps = grad_input.mutable_data_ptr<T>();
  const std::vector<int64_t> images = images_of_rois("roi_align", roi, s.rois, s.batch);
  const auto rois_of = rois_by_image(images, s.batch);
  const int64_t blocks = ceil_div(s.channels, kRoiChannels);
  const int64_t pixels = s.height * s.width, bins = s.output_h * s.output_w;
  parallel_for(s.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    AveragePlan<T> plan(s);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, first = task % blocks * kRoiChannels;
      const int64_t channels = std::min(kRoiChannels, s.channels - first);
      T* block_maps = maps + (image * s.channels + first) * pixels;
      for (int64_t k : rois_of[image]) {
        const int64_t start = (k * s.channels + first) * bins;
        if (s.average) {
          kernels<T>().backward(plan.of(roi + 5 * k), grad + start, channels, block_maps);
          continue;
        }
        for (int64_t i = 0; i < channels * bins; ++i)
          scatter_maximum(s, grad[start + i], at_y[start + i], at_x[start + i],
                          block_maps + i / bins * pixels);
      }
    }
  });
  return torch::stable::to(grad_input, grad_any.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t output_h,
                                                 int64_t output_w, double spatial_scale,
                                                 int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
  const ScalarType type = accumulate_type(input.scalar_type());
  const RoiAlignOutputs out =
      (type == ScalarType::Double ? forward<double> : forward<float>)(input, rois, shapes, type);
  return {out.output, out.argmax_y, out.argmax_x};
}

Tensor roi_align_backward_cpu(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                              const Tensor& argmax_x, std::vector<int64_t> input_size, double spatial_scale,
                              int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes = check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size,
                                                         spatial_scale, sampling_ratio, pool_mode, aligned);
  const ScalarType type = accumulate_type(grad_output.scalar_type());
  const auto run = type == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_output, rois, argmax_y, argmax_x, shapes, type);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&dcnzoo::roi_align_cpu));
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cpu));
}
