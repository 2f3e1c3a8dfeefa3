// deform_roi_pool on the CPU. Each bin has an offset, but its samples still form a grid: a bin is a sum of
// y weight · x weight · pixel, and all channels use the same weights.
#include <tuple>

#include "../common/roi_cpu.h"
#include "deform_roi_pool_checks.h"

namespace dcnzoo {
namespace {

template <typename T>
using Range = typename RoiShareTable<T>::Range;

// The shares of a RoI's bins, built once per task and used for all its channels.
template <typename T>
struct BinPlan {
  RoiShares<T> rows, columns, row_slopes, column_slopes;
  T count;             // divisor of a bin's sum
  T y_reach, x_reach;  // pixels per unit of offset

  // offset: the RoI's, [2][output_h][output_w], x then y
  void build(const DeformRoiPoolShapes& s, const T* roi, const T* offset, bool with_slopes = false) {
    const DeformRoiAxis<T> y = s.y_axis(roi), x = s.x_axis(roi);
    const int64_t bins = s.bins();
    count = roi_count(y.grid, x.grid);
    y_reach = y.reach;
    x_reach = x.reach;
    for (RoiShares<T>* shares : {&rows, &columns, &row_slopes, &column_slopes}) shares->clear();
    for (int64_t bin = 0; bin < bins; ++bin) {
      const RoiAxis<T> moved_y = y.moved(offset[bins + bin]), moved_x = x.moved(offset[bin]);
      rows.add_weights(moved_y, bin / s.output_w, s.height);
      columns.add_weights(moved_x, bin % s.output_w, s.width);
      if (!with_slopes) continue;
      row_slopes.add_slopes(moved_y, bin / s.output_w, s.height);
      column_slopes.add_slopes(moved_x, bin % s.output_w, s.width);
    }
  }
};

// The sums of a bin for several channels. `pixels` is the stride between their maps.
template <int Channels, typename T>
void sum_bin(const T* maps, int64_t pixels, int64_t width, Range<T> rows, Range<T> columns, T* sum) {
  for (int c = 0; c < Channels; ++c) sum[c] = T(0);
  for (const RoiShare<T>& y : rows) {
    const T* row = maps + y.pixel * width;
    T row_sum[Channels] = {};
    for (const RoiShare<T>& x : columns)
      for (int c = 0; c < Channels; ++c) row_sum[c] += x.weight * row[c * pixels + x.pixel];
    for (int c = 0; c < Channels; ++c) sum[c] += y.weight * row_sum[c];
  }
}

constexpr int kTogether = 4;  // channels whose sums are kept in registers

template <typename T>
Tensor forward(const DeformRoiPoolShapes& s, const Tensor& input_any, const Tensor& rois,
               const Tensor& offset_any) {
  const Tensor input = contiguous_as(input_any, kTypeOf<T>), offset = contiguous_as(offset_any, kTypeOf<T>);
  const RoiTasks<T> tasks("deform_roi_pool", s, rois);
  const Tensor output = torch::stable::new_empty(input, s.output_sizes());
  const T* const maps = input.const_data_ptr<T>();
  const T* const shifts = offset.const_data_ptr<T>();
  T* const out = output.mutable_data_ptr<T>();
  const int64_t pixels = s.pixels(), bins = s.bins();
  tasks.template each<BinPlan<T>>(kRoiChannels, [&](BinPlan<T>& plan, const RoiTask<T>& task) {
    plan.build(s, task.roi, shifts + 2 * task.number * bins);
    each_channels<kTogether>(task.channels, [&](auto number, int64_t first) {
      constexpr int channels = decltype(number)::value;
      const T* group = maps + task.map + first * pixels;
      T* group_out = out + task.bin + first * bins;
      for (int64_t i = 0; i < bins; ++i) {
        T sum[channels];
        sum_bin<channels>(group, pixels, s.width, plan.rows.bin(i), plan.columns.bin(i), sum);
        for (int c = 0; c < channels; ++c) group_out[c * bins + i] = sum[c] / plan.count;
      }
    });
  });
  return torch::stable::to(output, input_any.scalar_type());
}

// The adjoint of sum_bin. Not inlined: with the loop over tasks around it, the compiler would run out of registers.
template <typename T>
__attribute__((noinline)) void spread_bin(T gradient, int64_t width, Range<T> rows, Range<T> columns,
                                          T* map) {
  for (const RoiShare<T>& y : rows) {
    T* row = map + y.pixel * width;
    const T share = gradient * y.weight;
    for (const RoiShare<T>& x : columns) row[x.pixel] += share * x.weight;
  }
}

template <typename T>
void backward_input(const DeformRoiPoolShapes& s, const RoiTasks<T>& tasks, const T* grad, const T* offset,
                    T* grad_input) {
  const int64_t bins = s.bins();
  tasks.template each_by_image<BinPlan<T>>(kRoiChannels, [&](BinPlan<T>& plan, const RoiTask<T>& task) {
    plan.build(s, task.roi, offset + 2 * task.number * bins);
    for (int64_t channel = 0; channel < task.channels; ++channel)
      for (int64_t i = 0; i < bins; ++i)
        spread_bin(grad[task.bin + channel * bins + i] / plan.count, s.width, plan.rows.bin(i),
                   plan.columns.bin(i), grad_input + task.map + channel * s.pixels());
  });
}

// A task is all channels of a RoI, because a bin's offset moves the samples of all channels.
template <typename T>
void backward_offset(const DeformRoiPoolShapes& s, const RoiTasks<T>& tasks, const T* grad, const T* maps,
                     const T* offset, T* grad_offset) {
  const int64_t pixels = s.pixels(), bins = s.bins();
  const auto sum_slopes = [&](BinPlan<T>& plan, const RoiTask<T>& task) {
    T* x_sums = grad_offset + 2 * task.number * bins;
    T* y_sums = x_sums + bins;
    plan.build(s, task.roi, offset + 2 * task.number * bins, true);
    each_channels<kTogether>(task.channels, [&](auto number, int64_t first) {
      constexpr int channels = decltype(number)::value;
      const T* group = maps + task.map + first * pixels;
      const T* gradients = grad + task.bin + first * bins;
      for (int64_t i = 0; i < bins; ++i) {
        const auto add = [&](Range<T> rows, Range<T> columns, T reach, T* sums) {
          // the bin's position has no effect: return, because an Inf gradient times zero would give NaN
          if (rows.first == rows.last || columns.first == columns.last || reach == T(0)) return;
          T slope[channels];
          sum_bin<channels>(group, pixels, s.width, rows, columns, slope);
          for (int c = 0; c < channels; ++c) sums[i] += gradients[c * bins + i] * slope[c];
        };
        add(plan.row_slopes.bin(i), plan.columns.bin(i), plan.y_reach, y_sums);
        add(plan.rows.bin(i), plan.column_slopes.bin(i), plan.x_reach, x_sums);
      }
    });
    for (int64_t i = 0; i < bins; ++i) {
      y_sums[i] *= plan.y_reach / plan.count;
      x_sums[i] *= plan.x_reach / plan.count;
    }
  };
  tasks.template each<BinPlan<T>>(std::max<int64_t>(s.channels, 1), sum_slopes);
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const DeformRoiPoolShapes& s, const Tensor& grad_any,
                                    const Tensor& input_any, const Tensor& rois, const Tensor& offset_any,
                                    const std::vector<bool>& wanted) {
  const ScalarType type = kTypeOf<T>;
  const Tensor grad_output = contiguous_as(grad_any, type), offset = contiguous_as(offset_any, type);
  const Tensor grad_input = new_gradient(offset, wanted[0], input_any, type);
  const Tensor grad_offset = new_gradient(offset, wanted[1], offset, type);
  const RoiTasks<T> tasks("deform_roi_pool", s, rois);
  const T* const grad = grad_output.const_data_ptr<T>();
  const T* const shifts = offset.const_data_ptr<T>();
  if (wanted[0]) backward_input(s, tasks, grad, shifts, grad_input.mutable_data_ptr<T>());
  if (wanted[1]) {
    const Tensor input = contiguous_as(input_any, type);
    backward_offset(s, tasks, grad, input.const_data_ptr<T>(), shifts, grad_offset.mutable_data_ptr<T>());
  }
  return {torch::stable::to(grad_input, input_any.scalar_type()),
          torch::stable::to(grad_offset, offset_any.scalar_type())};
}

Tensor deform_roi_pool_cpu(const Tensor& input, const Tensor& rois, const Tensor& offset, int64_t output_h,
                           int64_t output_w, double spatial_scale, int64_t sampling_ratio, double gamma) {
  const DeformRoiPoolShapes shapes =
      check_deform_roi_pool(input, rois, offset, output_h, output_w, spatial_scale, sampling_ratio, gamma);
  return (is_double(input) ? forward<double> : forward<float>)(shapes, input, rois, offset);
}

std::tuple<Tensor, Tensor> deform_roi_pool_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& rois, const Tensor& offset,
                                                        double spatial_scale, int64_t sampling_ratio,
                                                        double gamma, const std::vector<bool>& output_mask) {
  const DeformRoiPoolShapes shapes = check_deform_roi_pool_backward(
      grad_output, input, rois, offset, spatial_scale, sampling_ratio, gamma, output_mask);
  return (is_double(input) ? backward<double> : backward<float>)(shapes, grad_output, input, rois, offset,
                                                                 output_mask);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&dcnzoo::deform_roi_pool_cpu));
  m.impl("_deform_roi_pool_backward", TORCH_BOX(&dcnzoo::deform_roi_pool_backward_cpu));
}
