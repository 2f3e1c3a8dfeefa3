#include <tuple>

#include "../common/derivatives.h"
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

template <typename S>
const S* data_of(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

// The tables of an average, built once per task and used for all its channels.
template <typename T>
class AverageTables {
 public:
  static constexpr int64_t forward_channels = kRoiChannels, backward_channels = kRoiChannels;  // per task
  template <typename S>
  static const auto& kernels() {
    return roi_align_kernels_dispatched().of<T, S>();
  }

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

// The same for a rotated RoI: the pixels and weights of each bin.
template <typename T>
class RotatedAverageTable {
 public:
  // enough to make up for the cost of a table; in the backward, a thread owns their gradients in an image
  static constexpr int64_t forward_channels = 256, backward_channels = 32;
  template <typename S>
  static const auto& kernels() {
    return roi_align_rotated_kernels_dispatched().of<T>();
  }

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

// Channels-last maps are read pixel by pixel: a task has all channels of a RoI.
template <template <typename> class Tables, typename T, typename S, typename Shapes>
Tensor average(const char* op, const Shapes& s, const Tensor& input_any, const Tensor& rois) {
  const Tensor typed = as_type(input_any, kStoredTypeOf<T, S>);
  const bool by_pixel =
      std::is_same_v<Shapes, RoiAlignShapes> && wants_channels_last(typed) && s.channels >= kRoiChannels;
  const Tensor input = by_pixel ? typed : contiguous_as(typed, typed.scalar_type());
  const RoiTasks<T> tasks(op, s, rois);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const S* const maps = data_of<S>(input);
  S* const out = static_cast<S*>(output.mutable_data_ptr());
  const auto& kernels = Tables<T>::template kernels<S>();
  const auto pool_task = [&](auto& tables, const RoiTask<T>& task) {
    if constexpr (std::is_same_v<Shapes, RoiAlignShapes>)
      if (by_pixel)
        return kernels.forward_by_pixel(tables.of(s, task.roi), maps + task.map, s.channels, task.channels,
                                        out + task.bin);
    kernels.forward(tables.of(s, task.roi), maps + task.map, task.channels, out + task.bin);
  };
  tasks.template each<Tables<T>>(by_pixel ? s.channels : Tables<T>::forward_channels, pool_task);
  return as_type(output, input_any.scalar_type());
}

template <template <typename> class Tables, typename T, typename S, typename Shapes>
Tensor average_backward(const char* op, const Shapes& s, const Tensor& grad_any, const Tensor& rois) {
  const Tensor grad_output = contiguous_as(grad_any, kStoredTypeOf<T, S>);
  const RoiTasks<T> tasks(op, s, rois);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes(), kTypeOf<T>);
  const S* const grad = data_of<S>(grad_output);
  T* const maps = grad_input.mutable_data_ptr<T>();
  const auto kernel = Tables<T>::template kernels<S>().backward;
  const auto pool_task = [&](auto& tables, const RoiTask<T>& task) {
    kernel(tables.of(s, task.roi), grad + task.bin, task.channels, maps + task.map);
  };
  tasks.template each_by_image<Tables<T>>(Tables<T>::backward_channels, pool_task);
  return as_type(grad_input, grad_any.scalar_type());
}

// RoiSamples that store their interpolation, because all channels of a RoI use it.
template <typename T>
struct StoredSamples : RoiSamples<T> {
  std::vector<Lerp<T>> lerps;
  StoredSamples(const RoiAxis<T>& axis, int64_t bin, int64_t size) : RoiSamples<T>(axis, bin, size) {
    for (int64_t i = this->span.begin; i < this->span.end; ++i) lerps.push_back(RoiSamples<T>::lerp(i));
  }
  const Lerp<T>& lerp(int64_t sample) const { return lerps[sample - this->span.begin]; }
};

// The samples of all bins along both axes.
template <typename T>
struct MaximumTables {
  std::vector<StoredSamples<T>> y, x;

  void fill(const RoiAlignShapes& s, const T* roi) {
    const RoiRegion<T> region = s.region(roi);
    y.clear(), x.clear();
    for (int64_t bin = 0; bin < s.output_h; ++bin) y.emplace_back(region.y, bin, s.height);
    for (int64_t bin = 0; bin < s.output_w; ++bin) x.emplace_back(region.x, bin, s.width);
  }
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> maximum(const RoiAlignShapes& s, const Tensor& input_any,
                                           const Tensor& rois) {
  const Tensor input = contiguous_as(input_any, kTypeOf<T>);
  const RoiTasks<T> tasks("roi_align", s, rois);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const Tensor argmax_y = new_argmax(s, input), argmax_x = new_argmax(s, input);
  const T* const maps = input.const_data_ptr<T>();
  T* const out = output.mutable_data_ptr<T>();
  T* const out_y = argmax_y.mutable_data_ptr<T>();
  T* const out_x = argmax_x.mutable_data_ptr<T>();
  tasks.template each<MaximumTables<T>>(kRoiChannels, [&](auto& tables, const RoiTask<T>& task) {
    tables.fill(s, task.roi);
    int64_t bin = task.bin;
    for (int64_t channel = 0; channel < task.channels; ++channel)
      for (const StoredSamples<T>& y : tables.y)
        for (const StoredSamples<T>& x : tables.x) {
          const auto best = roi_maximum<T>(maps + task.map + channel * s.pixels(), y, x);
          out[bin] = best.value, out_y[bin] = best.y, out_x[bin++] = best.x;
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
Tensor maximum_backward(const RoiAlignShapes& s, const Tensor& grad_any, const Tensor& rois,
                        const Tensor& y_any, const Tensor& x_any) {
  const Tensor grad_output = contiguous_as(grad_any, kTypeOf<T>);
  const Tensor argmax_y = contiguous_as(y_any, kTypeOf<T>), argmax_x = contiguous_as(x_any, kTypeOf<T>);
  const Tensor grad_input = torch::stable::new_zeros(grad_output, s.input_sizes());
  const RoiTasks<T> tasks("roi_align", s, rois);
  const T* const grad = grad_output.const_data_ptr<T>();
  const T* const y = argmax_y.const_data_ptr<T>();
  const T* const x = argmax_x.const_data_ptr<T>();
  T* const maps = grad_input.mutable_data_ptr<T>();
  tasks.template each_by_image<MaximumTables<T>>(kRoiChannels, [&](auto&, const RoiTask<T>& task) {
    for (int64_t i = 0; i < task.channels * s.bins(); ++i)
      scatter_maximum(s, grad[task.bin + i], y[task.bin + i], x[task.bin + i],
                      maps + task.map + i / s.bins() * s.pixels());
  });
  return torch::stable::to(grad_input, grad_any.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> roi_align_cpu(const Tensor& input, const Tensor& rois, int64_t output_h,
                                                 int64_t output_w, double spatial_scale,
                                                 int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, pool_mode, aligned);
  if (shapes.average) {
    const auto pool = is_double(input)     ? average<AverageTables, double, double, RoiAlignShapes>
                      : is_bfloat16(input) ? average<AverageTables, float, BFloat16Bits, RoiAlignShapes>
                                           : average<AverageTables, float, float, RoiAlignShapes>;
    return {pool("roi_align", shapes, input, rois), new_argmax(shapes, input), new_argmax(shapes, input)};
  }
  return (is_double(input) ? maximum<double> : maximum<float>)(shapes, input, rois);
}

Tensor roi_align_backward_cpu(const Tensor& grad_output, const Tensor& rois, const Tensor& argmax_y,
                              const Tensor& argmax_x, std::vector<int64_t> input_size, double spatial_scale,
                              int64_t sampling_ratio, int64_t pool_mode, bool aligned) {
  const RoiAlignShapes shapes = check_roi_align_backward(grad_output, rois, argmax_y, argmax_x, input_size,
                                                         spatial_scale, sampling_ratio, pool_mode, aligned);
  if (shapes.average) {
    const auto pool = is_double(grad_output) ? average_backward<AverageTables, double, double, RoiAlignShapes>
                      : is_bfloat16(grad_output)
                          ? average_backward<AverageTables, float, BFloat16Bits, RoiAlignShapes>
                          : average_backward<AverageTables, float, float, RoiAlignShapes>;
    return pool("roi_align", shapes, grad_output, rois);
  }
  const auto pool = is_double(grad_output) ? maximum_backward<double> : maximum_backward<float>;
  return pool(shapes, grad_output, rois, argmax_y, argmax_x);
}

Tensor roi_align_rotated_cpu(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                             double spatial_scale, int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes shapes = check_roi_align_rotated(input, rois, output_h, output_w, spatial_scale,
                                                               sampling_ratio, aligned, clockwise);
  const auto pool = is_double(input) ? average<RotatedAverageTable, double, double, RoiAlignRotatedShapes>
                                     : average<RotatedAverageTable, float, float, RoiAlignRotatedShapes>;
  return pool("roi_align_rotated", shapes, input, rois);
}

Tensor roi_align_rotated_backward_cpu(const Tensor& grad_output, const Tensor& rois,
                                      std::vector<int64_t> input_size, double spatial_scale,
                                      int64_t sampling_ratio, bool aligned, bool clockwise) {
  const RoiAlignRotatedShapes shapes = check_roi_align_rotated_backward(
      grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned, clockwise);
  const auto pool = is_double(grad_output)
                        ? average_backward<RotatedAverageTable, double, double, RoiAlignRotatedShapes>
                        : average_backward<RotatedAverageTable, float, float, RoiAlignRotatedShapes>;
  return pool("roi_align_rotated", shapes, grad_output, rois);
}

}  // namespace
}  // namespace dcnzoo

DCNZOO_DIFFERENTIABLE(CPU, "roi_align", &dcnzoo::roi_align_cpu)
DCNZOO_DIFFERENTIABLE(CPU, "roi_align_rotated", &dcnzoo::roi_align_rotated_cpu)

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cpu));
  m.impl("_roi_align_rotated_backward", TORCH_BOX(&dcnzoo::roi_align_rotated_backward_cpu));
}
