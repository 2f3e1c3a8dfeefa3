// deform_conv on the CPU, torch's side: checks, layouts, memory, threads. The arithmetic is in
// deform_conv_cpu_kernel.cpp.
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <memory>

#include "../common/parallel.h"
#include "deform_conv_cpu_kernel.h"
#include "deform_conv_shapes.h"

namespace dcnzoo {
namespace {

template <typename T>
const DeformConvKernels<T>& kernels_of();
template <>
const DeformConvKernels<float>& kernels_of<float>() { return deform_conv_kernels_float_dispatched(); }
template <>
const DeformConvKernels<double>& kernels_of<double>() { return deform_conv_kernels_double_dispatched(); }

// Images are staged channels-last (and the backward's partial sums kept) for at most this much at a
// time, however large im2col_step is.
constexpr int64_t kStagingBytes = 16 << 20;
// Channels of a slice: 9 taps · 64 channels · 96 rows of float are 216 KiB, a quarter of a usual L2.
constexpr int64_t kSliceBytes = 64 * sizeof(float);
constexpr int64_t kTileRows = 96;

template <typename T>
std::vector<ChannelSlice> slice_channels(const DeformConvShapes& s, int64_t most_channels) {
  std::vector<ChannelSlice> slices;
  const int64_t group_channels = s.channels / s.groups, panel = kernels_of<T>().panel;
  const int64_t outputs = s.out_channels / s.groups;
  const auto field_group = [&](int64_t channel, int64_t groups) {
    return groups ? channel / (s.channels / groups) : 0;
  };
  const auto end_of = [&](int64_t channel, int64_t groups) {
    return groups ? (field_group(channel, groups) + 1) * (s.channels / groups) : s.channels;
  };
  for (int64_t channel = 0; channel < s.channels;) {
    ChannelSlice slice{};
    slice.group = channel / group_channels;
    slice.first = channel;
    slice.offset_group = field_group(channel, s.offset_groups);
    slice.mask_group = field_group(channel, s.mask_groups);
    slice.opens_group = channel % group_channels == 0;
    const int64_t end = std::min({(slice.group + 1) * group_channels, end_of(channel, s.offset_groups),
                                  end_of(channel, s.mask_groups), channel + most_channels});
    slice.count = end - channel;
    slice.depth = (s.taps * slice.count + panel - 1) / panel * panel;
    channel = end;
    slices.push_back(slice);
  }
  for (ChannelSlice& slice : slices) {
    for (const ChannelSlice& other : slices)
      slice.shares_points |= &other != &slice && (other.offset_group == slice.offset_group ||
                                                  other.mask_group == slice.mask_group);
  }
  (void)outputs;
  return slices;
}

// Gives every slice's packed weight its place; returns the elements of all.
int64_t place_weights(std::vector<ChannelSlice>& slices, int64_t padded_outputs) {
  int64_t total = 0;
  for (ChannelSlice& slice : slices) {
    slice.weight = total;
    total += slice.depth * padded_outputs;
  }
  return total;
}

template <typename T>
DeformConvCpu<T> problem_of(const DeformConvShapes& s, const std::vector<ChannelSlice>& slices) {
  DeformConvCpu<T> p{};
  p.rank = int(s.rank);
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    p.in[axis] = s.in[axis], p.out[axis] = s.out[axis], p.kernel[axis] = s.kernel[axis];
    p.stride[axis] = s.stride[axis], p.padding[axis] = s.padding[axis];
    p.dilation[axis] = s.dilation[axis];
  }
  p.channels = s.channels, p.out_channels = s.out_channels, p.groups = s.groups;
  p.offset_groups = s.offset_groups, p.mask_groups = s.mask_groups;
  p.taps = s.taps, p.in_pixels = s.in_pixels, p.out_pixels = s.out_pixels;
  p.tile_rows = kTileRows;
  p.slices = slices.data(), p.slice_count = int64_t(slices.size());
  return p;
}

// How many images are lowered at a time.
template <typename T>
int64_t chunk_of(const DeformConvShapes& s) {
  const int64_t image_bytes = s.channels * s.in_pixels * int64_t(sizeof(T));
  return std::clamp<int64_t>(kStagingBytes / std::max<int64_t>(image_bytes, 1), 1, s.im2col_step);
}

bool is_channels_last(const Tensor& tensor) {
  const int64_t rank = tensor.dim() - 2;
  int64_t stride = tensor.size(1);
  if (tensor.stride(1) != 1) return false;
  for (int64_t axis = rank + 1; axis >= 2; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
    stride *= tensor.size(axis);
  }
  return tensor.size(0) == 1 || tensor.stride(0) == stride;
}

// A map in memory: channels last or first, contiguous either way.
struct Map {
  Tensor tensor;
  bool channels_last;
};

Map as_map(const Tensor& tensor) {
  if (tensor.is_contiguous()) return {tensor, false};
  if (is_channels_last(tensor)) return {tensor, true};
  return {torch::stable::contiguous(tensor), false};
}

// An empty tensor of these sizes whose memory is channels last.
Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> order{sizes[0]};
  order.insert(order.end(), sizes.begin() + 2, sizes.end());
  order.push_back(sizes[1]);
  Tensor tensor = torch::stable::new_empty(like, order);
  for (int64_t axis = int64_t(sizes.size()) - 1; axis > 1; --axis)
    tensor = torch::stable::transpose(tensor, axis - 1, axis);
  return tensor;
}

// [images][channels][pixels] -> [images][pixels][channels], or back with the sizes exchanged.
template <typename T>
void transpose_images(const T* from, T* to, int64_t images, int64_t rows, int64_t columns) {
  constexpr int64_t stretch = 256;
  const int64_t stretches = (columns + stretch - 1) / stretch;
  parallel_for(images * stretches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / stretches, first = i % stretches * stretch;
      kernels_of<T>().transpose(from + image * rows * columns + first, columns,
                                to + image * rows * columns + first * rows, rows, rows,
                                std::min(stretch, columns - first));
    }
  });
}

std::optional<Tensor> contiguous_as(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, type));
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
Tensor forward(const DeformConvShapes& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias) {
  const DeformConvKernels<T>& kernels = kernels_of<T>();
  const Map map = as_map(input);
  Tensor output = map.channels_last ? new_channels_last(input, s.output_sizes())
                                    : torch::stable::new_empty(input, s.output_sizes());
  if (output.numel() == 0) return output;

  std::vector<ChannelSlice> slices = slice_channels<T>(s, kSliceBytes / int64_t(sizeof(T)));
  const int64_t outputs = s.out_channels / s.groups;
  const int64_t padded = (outputs + kernels.panel - 1) / kernels.panel * kernels.panel;
  Buffer<T> packed(place_weights(slices, padded));
  DeformConvCpu<T> p = problem_of<T>(s, slices);
  parallel_for(p.slice_count, 1, [&](int64_t begin, int64_t end) {
    kernels.pack_forward(p, static_cast<const T*>(weight.const_data_ptr()), packed.data(), begin, end);
  });
  p.weight = packed.data();
  p.bias = data_or_null<T>(bias);
  p.output_channels_last = map.channels_last;

  const int64_t chunk = chunk_of<T>(s), image_size = s.channels * s.in_pixels;
  const T* images = static_cast<const T*>(map.tensor.const_data_ptr());
  Buffer<T> staged(map.channels_last ? 0 : chunk * image_size);
  for (int64_t first = 0; first < s.batch; first += chunk) {
    p.images = std::min(chunk, s.batch - first);
    p.input = images + first * image_size;
    if (!map.channels_last) {
      transpose_images(p.input, staged.data(), p.images, s.channels, s.in_pixels);
      p.input = staged.data();
    }
    const int64_t fields = first * s.taps * s.out_pixels;
    p.offset = offset ? data_or_null<T>(offset) + fields * s.offset_groups * s.rank : nullptr;
    p.mask = mask ? data_or_null<T>(mask) + fields * s.mask_groups : nullptr;
    p.output = static_cast<T*>(output.mutable_data_ptr()) + first * s.out_channels * s.out_pixels;
    const int64_t tiles = (p.images * s.out_pixels + p.tile_rows - 1) / p.tile_rows;
    const int64_t scratch = kernels.forward_scratch(p);
    parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end, thread_scratch<T>(scratch));
    });
  }
  return output;
}

template <typename T>
struct Gradients {
  Tensor input, weight, offset, mask;
};

template <typename T>
Gradients<T> backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                      const Tensor& weight, const std::optional<Tensor>& offset,
                      const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  const DeformConvKernels<T>& kernels = kernels_of<T>();
  const Map map = as_map(input), grad_map = as_map(grad_output);
  const Tensor none = torch::stable::new_empty(input, {0});
  const auto like = [&](const Tensor& tensor) {
    return torch::stable::new_empty(tensor, sizes_of(tensor));
  };
  Gradients<T> gradients{none, none, none, none};
  if (wanted[0])
    gradients.input = map.channels_last ? new_channels_last(input, sizes_of(input)) : like(input);
  if (wanted[1]) gradients.weight = like(weight);
  if (wanted[2]) gradients.offset = like(*offset);
  if (wanted[3]) gradients.mask = like(*mask);
  if (grad_output.numel() == 0) {
    for (Tensor* gradient : {&gradients.input, &gradients.weight, &gradients.offset, &gradients.mask})
      torch::stable::zero_(*gradient);
    return gradients;
  }

  // Slices are the unit of parallel work, since no two of them write the same gradient of input or
  // weight; narrow maps get narrower ones. They depend on the shapes alone, so the sums do too.
  const int64_t most = kSliceBytes / int64_t(sizeof(T));
  const int64_t wish = (s.channels / 2 + kernels.panel - 1) / kernels.panel * kernels.panel;
  std::vector<ChannelSlice> slices = slice_channels<T>(s, std::clamp(wish, kernels.panel, most));
  const int64_t packed_size = place_weights(slices, s.out_channels / s.groups);
  DeformConvCpu<T> p = problem_of<T>(s, slices);

  Buffer<T> packed(wanted[0] || wanted[2] || wanted[3] ? packed_size : 0);
  if (packed.size()) {
    parallel_for(p.slice_count, 1, [&](int64_t begin, int64_t end) {
      kernels.pack_backward(p, static_cast<const T*>(weight.const_data_ptr()), packed.data(), begin, end);
    });
  }
  p.weight_backward = packed.data();
  p.grad_output_channels_last = grad_map.channels_last;

  // Where slices are few, several blocks of images go in parallel, each with a weight gradient of its own.
  const int64_t chunk = chunk_of<T>(s), image_size = s.channels * s.in_pixels;
  const int64_t blocks = std::clamp<int64_t>(16 / p.slice_count, 1, chunk);
  Buffer<T> grad_weight(wanted[1] ? blocks * packed_size : 0);
  std::memset(grad_weight.data(), 0, grad_weight.size() * sizeof(T));
  bool shares = false;
  for (const ChannelSlice& slice : slices) shares |= slice.shares_points;
  const bool fields = wanted[2] || wanted[3];
  Buffer<T> grad_fields(shares && fields
                            ? p.slice_count * s.taps * (s.rank + 1) * chunk * s.out_pixels
                            : 0);
  p.grad_fields = grad_fields.data();
  Buffer<T> staged(map.channels_last ? 0 : chunk * image_size);
  Buffer<T> grad_staged(wanted[0] && !map.channels_last ? chunk * image_size : 0);

  for (int64_t first = 0; first < s.batch; first += chunk) {
    p.images = std::min(chunk, s.batch - first);
    p.input = static_cast<const T*>(map.tensor.const_data_ptr()) + first * image_size;
    if (!map.channels_last) {
      transpose_images(p.input, staged.data(), p.images, s.channels, s.in_pixels);
      p.input = staged.data();
    }
    const int64_t pixels = first * s.out_pixels;
    const int64_t offset_at = pixels * s.taps * s.offset_groups * s.rank;
    const int64_t mask_at = pixels * s.taps * s.mask_groups;
    p.offset = offset ? data_or_null<T>(offset) + offset_at : nullptr;
    p.mask = mask ? data_or_null<T>(mask) + mask_at : nullptr;
    p.grad_output = static_cast<const T*>(grad_map.tensor.const_data_ptr()) + pixels * s.out_channels;
    p.grad_offset =
        wanted[2] ? static_cast<T*>(gradients.offset.mutable_data_ptr()) + offset_at : nullptr;
    p.grad_mask = wanted[3] ? static_cast<T*>(gradients.mask.mutable_data_ptr()) + mask_at : nullptr;
    if (wanted[0]) {
      p.grad_input = map.channels_last
                         ? static_cast<T*>(gradients.input.mutable_data_ptr()) + first * image_size
                         : grad_staged.data();
      parallel_for(p.images * s.in_pixels, 4096, [&](int64_t begin, int64_t end) {
        std::memset(p.grad_input + begin * s.channels, 0, (end - begin) * s.channels * sizeof(T));
      });
    }
    const int64_t per_block = (p.images + blocks - 1) / blocks;
    const int64_t used = (p.images + per_block - 1) / per_block;
    const int64_t scratch = kernels.backward_scratch(p);
    parallel_for(used * p.slice_count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = task / p.slice_count;
        DeformConvCpu<T> mine = p;
        mine.grad_weight = wanted[1] ? grad_weight.data() + block * packed_size : nullptr;
        kernels.backward(mine, task % p.slice_count, block * per_block,
                         std::min((block + 1) * per_block, p.images), thread_scratch<T>(scratch));
      }
    });
    if (shares && fields) {
      parallel_for(p.images, 1,
                   [&](int64_t begin, int64_t end) { kernels.reduce_fields(p, begin, end); });
    }
    if (wanted[0] && !map.channels_last)
      transpose_images<T>(grad_staged.data(),
                       static_cast<T*>(gradients.input.mutable_data_ptr()) + first * image_size,
                       p.images, s.in_pixels, s.channels);
  }
  if (wanted[1]) {
    T* to = static_cast<T*>(gradients.weight.mutable_data_ptr());
    parallel_for(p.slice_count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice)
        for (int64_t block = 0; block < blocks; ++block)
          kernels.unpack_weight_gradient(p, grad_weight.data() + block * packed_size, to, slice, block > 0);
    });
  }
  return gradients;
}

}  // namespace

Tensor deform_conv_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                       std::optional<Tensor> mask, std::optional<Tensor> bias,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, int64_t groups,
                       std::optional<int64_t> im2col_step) {
  const DeformConvShapes s = check_deform_conv(input, weight, offset, mask, bias, stride, padding,
                                               dilation, groups, im2col_step);
  const ScalarType type = accumulate_type(input.scalar_type());
  const Tensor wide_input = torch::stable::to(input, type);
  const Tensor wide_weight = *contiguous_as(weight, type);
  const auto wide_offset = contiguous_as(offset, type), wide_mask = contiguous_as(mask, type),
             wide_bias = contiguous_as(bias, type);
  const Tensor output =
      type == ScalarType::Double
          ? forward<double>(s, wide_input, wide_weight, wide_offset, wide_mask, wide_bias)
          : forward<float>(s, wide_input, wide_weight, wide_offset, wide_mask, wide_bias);
  return torch::stable::to(output, input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight,
    std::optional<Tensor> offset, std::optional<Tensor> mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
    std::optional<int64_t> im2col_step, const std::vector<bool>& output_mask) {
  const DeformConvShapes s = check_deform_conv(input, weight, offset, mask, std::nullopt, stride,
                                               padding, dilation, groups, im2col_step);
  check_grad_output(s, grad_output, input, offset, mask, output_mask);
  const ScalarType type = accumulate_type(input.scalar_type());
  const Tensor wide_grad = torch::stable::to(grad_output, type);
  const Tensor wide_input = torch::stable::to(input, type);
  const Tensor wide_weight = *contiguous_as(weight, type);
  const auto wide_offset = contiguous_as(offset, type), wide_mask = contiguous_as(mask, type);
  const auto run = [&](auto gradients) {
    const auto narrow = [](const Tensor& gradient, const std::optional<Tensor>& like) {
      return like ? torch::stable::to(gradient, like->scalar_type()) : gradient;
    };
    Tensor grad_bias = torch::stable::new_empty(input, {0});
    if (output_mask[4]) {
      std::vector<int64_t> axes{0};
      for (int64_t axis = 2; axis < input.dim(); ++axis) axes.push_back(axis);
      grad_bias = narrow(torch::stable::sum(wide_grad, axes, false), input);
    }
    return std::make_tuple(narrow(gradients.input, input), narrow(gradients.weight, weight),
                           narrow(gradients.offset, offset), narrow(gradients.mask, mask), grad_bias);
  };
  if (type == ScalarType::Double)
    return run(backward<double>(s, wide_grad, wide_input, wide_weight, wide_offset, wide_mask, output_mask));
  return run(backward<float>(s, wide_grad, wide_input, wide_weight, wide_offset, wide_mask, output_mask));
}

}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("deform_conv", TORCH_BOX(&dcnzoo::deform_conv_cpu));
  m.impl("_deform_conv_backward", TORCH_BOX(&dcnzoo::deform_conv_backward_cpu));
}
