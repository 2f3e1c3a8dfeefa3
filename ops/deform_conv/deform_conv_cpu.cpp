// deform_conv on the CPU, torch's side: checks, layouts, memory, threads. The arithmetic is in
// deform_conv_cpu_kernel.cpp.
#include <algorithm>
#include <type_traits>

#include "../common/integers.h"
#include "../common/memory_format.h"
#include "../common/parallel.h"
#include "deform_conv_cpu_kernel.h"
#include "deform_conv_checks.h"

namespace dcnzoo {
namespace {

template <typename T, typename S>
const DeformConvForward<T, S>& forward_kernels() {
  const DeformConvKernels& all = deform_conv_kernels_dispatched();
  if constexpr (std::is_same_v<S, BFloat16Bits>)
    return all.forward_bfloat16;
  else
    return all.forward.of<T>();
}

template <typename T>
const DeformConvBackward<T>& backward_kernels() {
  return deform_conv_kernels_dispatched().backward.of<T>();
}

// What the forward stages channels-last at a time, however large im2col_step is: fewer images first, then
// fewer channels of one image. But bfloat16 is staged by whole images, of any size: sums over some of the channels
// would be rounded on their way through the output.
constexpr int64_t kStagingBytes = int64_t(13) << 20;
constexpr int64_t kLeastStagingBytes = int64_t(4) << 20;

// Channels of a slice: 9 taps · 64 channels · 96 rows of float are 216 KiB, a quarter of a usual L2.
constexpr int64_t kSliceBytes = 64 * sizeof(float);
constexpr int64_t kTileRows = 96;

// Tiles as large as may be that share out evenly. No result depends on it: a pixel's sums are its own.
int64_t tile_rows_for(int64_t pixels) {
  const int64_t threads = num_threads(), round = kTileRows * threads;
  const int64_t tiles = ceil_div(pixels, round) * threads;
  return std::max<int64_t>(ceil_div(pixels, tiles), 1);
}

bool is_depthwise(const DeformConvShapes& s) {
  return s.groups > 1 && s.groups == s.channels && s.groups == s.out_channels;
}

std::vector<ChannelSlice> slice_channels(const DeformConvShapes& s, int64_t most_channels, int64_t panel) {
  std::vector<ChannelSlice> slices;
  const bool depthwise = is_depthwise(s);
  const int64_t groups = depthwise ? 1 : s.groups, group_channels = s.channels / groups;
  // two or more, as bfloat16 is multiplied in pairs
  const bool narrow = group_channels > 1 && group_channels < panel && panel % group_channels == 0;
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
    int64_t end =
        std::min({end_of(channel, s.offset_groups), end_of(channel, s.mask_groups), channel + most_channels});
    const int64_t whole_panels = (end - channel) / panel * panel;
    const bool joins = narrow && channel % group_channels == 0 && whole_panels > 0;
    end = joins ? channel + whole_panels : std::min(end, (slice.group + 1) * group_channels);
    slice.count = end - channel;
    slice.groups = joins ? slice.count / group_channels : 1;
    slice.opens_group = depthwise || channel % group_channels == 0;
    slice.closes_group = depthwise || end % group_channels == 0;
    const int64_t group_outputs = s.out_channels / groups;
    slice.outputs = depthwise ? slice.count : slice.groups * group_outputs;
    slice.first_output = depthwise ? slice.first : slice.group * group_outputs;
    slice.panel_outputs = joins ? panel / group_channels * group_outputs : slice.outputs;
    slice.depth = round_up(s.taps * slice.count, panel);
    channel = end;
    slices.push_back(slice);
  }
  for (ChannelSlice& slice : slices) {
    for (const ChannelSlice& other : slices)
      slice.shares_points |= &other != &slice && (other.offset_group == slice.offset_group ||
                                                  other.mask_group == slice.mask_group);
  }
  return slices;
}

// Gives every slice's packed weight its place: for each of its columns, weights_of(slice). Returns the
// elements of all.
template <typename WeightsOf>
int64_t place_weights(std::vector<ChannelSlice>& slices, const WeightsOf& weights_of) {
  int64_t total = 0;
  for (ChannelSlice& slice : slices) {
    slice.weight = total;
    total += slice.depth * weights_of(slice);
  }
  return total;
}

template <typename T, typename S = T>
DeformConvParams<T, S> make_params(const DeformConvShapes& s, const std::vector<ChannelSlice>& slices,
                                   int64_t panel) {
  DeformConvParams<T, S> p{};
  p.rank = int(s.rank);
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    p.in[axis] = s.in[axis], p.out[axis] = s.out[axis], p.kernel[axis] = s.kernel[axis];
    p.stride[axis] = s.stride[axis], p.padding[axis] = s.padding[axis];
    p.dilation[axis] = s.dilation[axis];
  }
  p.channels = s.channels, p.out_channels = s.out_channels, p.groups = s.groups;
  p.offset_groups = s.offset_groups, p.mask_groups = s.mask_groups;
  p.taps = s.taps, p.in_pixels = s.in_pixels, p.out_pixels = s.out_pixels;
  p.depthwise = is_depthwise(s);
  p.tile_rows = kTileRows;
  p.slices = slices.data(), p.slice_end = int64_t(slices.size());
  for (const ChannelSlice& slice : slices) {
    const int64_t last_group = slice.outputs / slice.groups;  // is written in whole panels
    p.most_depth = std::max(p.most_depth, slice.depth);
    p.padded_outputs =
        std::max(p.padded_outputs, round_up(slice.outputs - last_group + round_up(last_group, panel), panel));
  }
  p.input_channels = s.channels;
  return p;
}

// How many images are lowered at a time, `image_bytes` each.
int64_t images_at_a_time(const DeformConvShapes& s, int64_t image_bytes) {
  return std::clamp<int64_t>(kStagingBytes / std::max<int64_t>(image_bytes, 1), 1, s.im2col_step);
}

// The end of the pass that begins with slice `begin`: as many slices as may be staged at a time, at least
// one.
int64_t end_of_pass(const std::vector<ChannelSlice>& slices, int64_t begin, int64_t channel_bytes,
                    int64_t most_bytes) {
  int64_t end = begin + 1, bytes = slices[begin].count * channel_bytes;
  while (end < int64_t(slices.size()) && (bytes += slices[end].count * channel_bytes) <= most_bytes) ++end;
  return end;
}

// A map in memory: channels last or first, contiguous either way.
struct Map {
  Tensor tensor;
  bool channels_last;
};

Map as_map(const Tensor& tensor) {
  if (tensor.is_contiguous()) return {tensor, false};
  if (wants_channels_last(tensor)) return {tensor, true};
  return {torch::stable::contiguous(tensor), false};
}

// [rows][columns] -> [columns][rows], some columns at a time: a stretch of them fits the first-level cache.
constexpr int64_t kStretch = 256;

template <typename T, typename S = T>
void transpose_stretch(const S* from, S* to, int64_t rows, int64_t columns, int64_t stretch) {
  const int64_t first = stretch * kStretch;
  forward_kernels<T, S>().transpose(from + first, columns, to + first * rows, rows, rows,
                                    std::min(kStretch, columns - first));
}

template <typename T>
void transpose_map(const T* from, T* to, int64_t rows, int64_t columns) {
  for (int64_t stretch = 0; stretch * kStretch < columns; ++stretch)
    transpose_stretch<T>(from, to, rows, columns, stretch);
}

// The same for several images, which lie from_image and to_image apart, on all threads.
template <typename T, typename S>
void transpose_images(const S* from, int64_t from_image, S* to, int64_t to_image, int64_t images,
                      int64_t rows, int64_t columns) {
  const int64_t stretches = ceil_div(columns, kStretch);
  parallel_for(images * stretches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / stretches;
      transpose_stretch<T, S>(from + image * from_image, to + image * to_image, rows, columns, i % stretches);
    }
  });
}

template <typename T>
void zero(T* data, int64_t size) {
  parallel_for(size, 1 << 16, [&](int64_t begin, int64_t end) { std::fill(data + begin, data + end, T(0)); });
}

std::optional<Tensor> contiguous_as(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, type));
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// S is the type of input, weight and output, T that of offset, mask and bias.
template <typename T, typename S>
Tensor forward(const DeformConvShapes& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias) {
  const DeformConvForward<T, S>& kernels = forward_kernels<T, S>();
  const Map map = as_map(input);
  Tensor output = map.channels_last ? new_channels_last(input, s.output_sizes())
                                    : torch::stable::new_empty(input, s.output_sizes());
  if (output.numel() == 0) return output;

  // Sums that pass through a narrower output would be rounded: then all channels go in one pass.
  const bool one_pass = map.channels_last || !std::is_same_v<S, T>;
  // Slices as wide as may be staged at all, in whole vectors: half panels.
  const int64_t widest = kSliceBytes / int64_t(sizeof(T)), lanes = kernels.panel / 2;
  const int64_t stageable = kStagingBytes / (s.in_pixels * int64_t(sizeof(S))) / lanes * lanes;
  std::vector<ChannelSlice> slices =
      slice_channels(s, one_pass ? widest : std::clamp(stageable, lanes, widest), kernels.panel);
  const int64_t padded = is_depthwise(s) ? 1 : round_up(s.out_channels / s.groups, kernels.panel);
  Buffer<S> packed(place_weights(slices, [&](const ChannelSlice&) { return padded; }));
  DeformConvParams<T, S> p = make_params<T, S>(s, slices, kernels.panel);
  const int64_t all_slices = p.slice_end;
  parallel_for(all_slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice)
      kernels.pack(p, static_cast<const S*>(weight.const_data_ptr()), packed.data(), slice);
  });
  p.weight = packed.data();
  p.bias = data_or_null<T>(bias);
  p.output_channels_last = map.channels_last;

  const int64_t image_size = s.channels * s.in_pixels;
  const int64_t chunk = images_at_a_time(s, image_size * int64_t(sizeof(S)));
  // Packed weight and staged maps share one bound.
  const int64_t staging = std::max(kStagingBytes - packed.size() * int64_t(sizeof(S)), kLeastStagingBytes);
  const S* images = static_cast<const S*>(map.tensor.const_data_ptr());
  Buffer<S> staged;
  for (int64_t first = 0; first < s.batch; first += chunk) {
    p.images = std::min(chunk, s.batch - first);
    p.tile_rows = tile_rows_for(p.images * s.out_pixels);
    const int64_t fields = first * s.taps * s.out_pixels;
    p.offset = offset ? data_or_null<T>(offset) + fields * s.offset_groups * s.rank : nullptr;
    p.mask = mask ? data_or_null<T>(mask) + fields * s.mask_groups : nullptr;
    p.output = static_cast<S*>(output.mutable_data_ptr()) + first * s.out_channels * s.out_pixels;
    p.slice_end = 0;
    while (p.slice_end < all_slices) {
      p.slice_begin = p.slice_end;
      p.input = images + first * image_size;
      p.slice_end =
          one_pass ? all_slices
                   : end_of_pass(slices, p.slice_begin, p.images * s.in_pixels * int64_t(sizeof(S)), staging);
      if (!map.channels_last) {
        const ChannelSlice& last = slices[p.slice_end - 1];
        p.first_channel = slices[p.slice_begin].first;
        p.input_channels = last.first + last.count - p.first_channel;
        const int64_t staged_image = p.input_channels * s.in_pixels;
        if (staged.size() < p.images * staged_image) staged = Buffer<S>(p.images * staged_image);
        transpose_images<T, S>(p.input + p.first_channel * s.in_pixels, image_size, staged.data(),
                               staged_image, p.images, p.input_channels, s.in_pixels);
        p.input = staged.data();
      }
      const int64_t tiles = ceil_div(p.images * s.out_pixels, p.tile_rows);
      const int64_t scratch = kernels.scratch_bytes(p);
      TaskQueue queue(tiles);
      queue.run([&] {
        char* const memory = thread_scratch<char>(scratch);
        for (int64_t tile; queue.take(tile);) kernels.run(p, tile, memory);
      });
    }
  }
  return output;
}

// One slice of some images, channels last, and its gradient: what a task of the backward works on.
template <typename T>
class StagedSlice {
 public:
  // Copies the slice of images [begin, end) and points p at the copy.
  void load(DeformConvParams<T>& p, const ChannelSlice& slice, int64_t begin, int64_t end) {
    const int64_t image_size = slice.count * p.in_pixels, size = (end - begin) * image_size;
    p.first_image = begin, p.first_channel = slice.first, p.input_channels = slice.count;
    if (p.grad_weight || p.grad_offset || p.grad_mask) {
      if (input_.size() < size) input_ = Buffer<T>(size);
      for (int64_t image = begin; image < end; ++image)
        transpose_map(p.input + (image * p.channels + slice.first) * p.in_pixels,
                      input_.data() + (image - begin) * image_size, slice.count, p.in_pixels);
      p.input = input_.data();
    }
    if (p.grad_input == nullptr) return;
    if (gradient_.size() < size) gradient_ = Buffer<T>(size);
    std::fill_n(gradient_.data(), size, T(0));
    p.grad_input = gradient_.data();
  }

  void store_gradient(const DeformConvParams<T>& p, const ChannelSlice& slice, int64_t begin,
                      int64_t end) const {
    for (int64_t image = begin; image < end; ++image)
      transpose_map(gradient_.data() + (image - begin) * slice.count * p.in_pixels,
                    p.grad_input + (image * p.channels + slice.first) * p.in_pixels, p.in_pixels,
                    slice.count);
  }

 private:
  Buffer<T> input_, gradient_;
};

// The sum of grad_output over images and pixels, [out_channels]. Each block of pixels is summed by itself and the
// blocks' sums in their order, in double: the result does not depend on the number of threads.
template <typename T>
Tensor bias_gradient(const DeformConvShapes& s, const Tensor& grad_output) {
  constexpr int64_t block_pixels = 2048;
  const Map map = as_map(grad_output);
  const int64_t image_blocks = ceil_div(s.out_pixels, block_pixels);
  const int64_t blocks = s.batch * image_blocks, channels = s.out_channels;
  const T* const from = static_cast<const T*>(map.tensor.const_data_ptr());
  std::vector<double> sums(blocks * channels);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % image_blocks * block_pixels;
      const int64_t count = std::min(block_pixels, s.out_pixels - first);
      const T* const image = from + block / image_blocks * channels * s.out_pixels;
      double* const sum = sums.data() + block * channels;
      if (map.channels_last) {
        for (int64_t i = first * channels; i < (first + count) * channels; i += channels)
          for (int64_t channel = 0; channel < channels; ++channel) sum[channel] += image[i + channel];
        continue;
      }
      for (int64_t channel = 0; channel < channels; ++channel) {
        constexpr int lanes = 8;  // sums that the compiler may keep in vectors
        const T* const at = image + channel * s.out_pixels + first;
        double part[lanes] = {};
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes)
          for (int lane = 0; lane < lanes; ++lane) part[lane] += at[i + lane];
        for (; i < count; ++i) part[0] += at[i];
        for (int lane = 0; lane < lanes; ++lane) sum[channel] += part[lane];
      }
    }
  });
  Tensor result = torch::stable::new_empty(grad_output, {channels});
  T* const to = static_cast<T*>(result.mutable_data_ptr());
  for (int64_t channel = 0; channel < channels; ++channel) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block * channels + channel];
    to[channel] = T(sum);
  }
  return result;
}

template <typename T>
struct Gradients {
  Tensor input, weight, offset, mask;
};

template <typename T>
Gradients<T> backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                      const Tensor& weight, const std::optional<Tensor>& offset,
                      const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  const DeformConvBackward<T>& kernels = backward_kernels<T>();
  const Map map = as_map(input), grad_map = as_map(grad_output);
  // an empty tensor each: an operator's results must not be one another
  const auto none = [&] { return torch::stable::new_empty(input, {0}); };
  const auto like = [&](const Tensor& tensor) { return torch::stable::new_empty(tensor, sizes_of(tensor)); };
  Gradients<T> gradients{none(), none(), none(), none()};
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
  const int64_t most = kSliceBytes / int64_t(sizeof(T)), panel = forward_kernels<T, T>().panel;
  const int64_t wish = round_up(s.channels / 2, panel);
  std::vector<ChannelSlice> slices = slice_channels(s, std::clamp(wish, panel, most), panel);
  const int64_t packed_size = place_weights(
      slices, [&](const ChannelSlice& slice) { return is_depthwise(s) ? 1 : slice.panel_outputs; });
  DeformConvParams<T> p = make_params<T>(s, slices, panel);
  const int64_t all_slices = p.slice_end;

  Buffer<T> packed(wanted[0] || wanted[2] || wanted[3] ? packed_size : 0);
  if (packed.size()) {
    parallel_for(all_slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice)
        kernels.pack(p, static_cast<const T*>(weight.const_data_ptr()), packed.data(), slice);
    });
  }
  p.weight_backward = packed.data();
  p.grad_output_channels_last = grad_map.channels_last;

  // Where slices are few, several blocks of images go in parallel, each with a weight gradient of its own.
  const int64_t image_size = s.channels * s.in_pixels;
  const int64_t chunk = images_at_a_time(s, image_size / all_slices * int64_t(2 * sizeof(T)));
  const int64_t blocks = std::clamp<int64_t>(16 / all_slices, 1, std::min(chunk, s.batch));
  Buffer<T> grad_weight(wanted[1] ? blocks * packed_size : 0);
  std::fill_n(grad_weight.data(), grad_weight.size(), T(0));
  bool shares = false;
  for (const ChannelSlice& slice : slices) shares |= slice.shares_points;
  shares &= wanted[2] || wanted[3];
  const int64_t fields = s.taps * (s.rank + 1);
  const int64_t slice_fields = shares ? fields * std::min(chunk, s.batch) * s.out_pixels : 0;
  const int64_t most_slices = std::max(
      kStagingBytes / std::max<int64_t>(slice_fields * int64_t(sizeof(T)), 1), int64_t(4) * num_threads());
  Buffer<T> grad_fields(std::min(most_slices, all_slices) * slice_fields);
  p.grad_fields = grad_fields.data();
  const int64_t scratch = kernels.scratch_bytes(p);

  for (int64_t first = 0; first < s.batch; first += chunk) {
    p.images = std::min(chunk, s.batch - first);
    const int64_t pixels = first * s.out_pixels;
    const int64_t offset_at = pixels * s.taps * s.offset_groups * s.rank;
    const int64_t mask_at = pixels * s.taps * s.mask_groups;
    p.offset = offset ? data_or_null<T>(offset) + offset_at : nullptr;
    p.mask = mask ? data_or_null<T>(mask) + mask_at : nullptr;
    p.grad_output = static_cast<const T*>(grad_map.tensor.const_data_ptr()) + pixels * s.out_channels;
    p.grad_offset = wanted[2] ? static_cast<T*>(gradients.offset.mutable_data_ptr()) + offset_at : nullptr;
    p.grad_mask = wanted[3] ? static_cast<T*>(gradients.mask.mutable_data_ptr()) + mask_at : nullptr;
    p.input = static_cast<const T*>(map.tensor.const_data_ptr()) + first * image_size;
    p.grad_input =
        wanted[0] ? static_cast<T*>(gradients.input.mutable_data_ptr()) + first * image_size : nullptr;
    if (wanted[0] && map.channels_last) zero(p.grad_input, p.images * image_size);
    const int64_t per_block = ceil_div(p.images, blocks);
    const int64_t used_blocks = ceil_div(p.images, per_block);
    for (int64_t slice_begin = 0; slice_begin < all_slices; slice_begin += most_slices) {
      p.slice_begin = slice_begin, p.slice_end = std::min(slice_begin + most_slices, all_slices);
      const int64_t slice_count = p.slice_end - p.slice_begin;
      TaskQueue queue(used_blocks * slice_count);
      queue.run([&] {
        char* const memory = thread_scratch<char>(scratch);
        StagedSlice<T> staged;
        for (int64_t task; queue.take(task);) {
          const int64_t block = task / slice_count, slice = p.slice_begin + task % slice_count;
          const int64_t begin = block * per_block, end = std::min(begin + per_block, p.images);
          DeformConvParams<T> mine = p;
          mine.grad_weight = wanted[1] ? grad_weight.data() + block * packed_size : nullptr;
          if (!map.channels_last) staged.load(mine, slices[slice], begin, end);
          kernels.run(mine, slice, begin, end, memory);
          if (!map.channels_last && wanted[0]) staged.store_gradient(p, slices[slice], begin, end);
        }
      });
      if (shares) {
        parallel_for(p.images * fields, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) kernels.reduce_fields(p, i / fields, i % fields);
        });
      }
    }
  }
  if (wanted[1]) {
    T* to = static_cast<T*>(gradients.weight.mutable_data_ptr());
    parallel_for(all_slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice)
        for (int64_t block = 0; block < blocks; ++block)
          kernels.unpack_weight_gradient(p, grad_weight.data() + block * packed_size, to, slice, block > 0);
    });
  }
  return gradients;
}

// Beside float, the kernels count a map's pixels in 32 bits.
void check_map(const DeformConvShapes& s, ScalarType type) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  check(s.in_pixels <= most || type == ScalarType::Double, "deform_conv", s.rank,
        "d: input: expected at most ", most, " pixels on the CPU (float64: any number), got ", s.in_pixels);
}

}  // namespace

Tensor deform_conv_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                       std::optional<Tensor> mask, std::optional<Tensor> bias,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, int64_t groups,
                       std::optional<int64_t> im2col_step) {
  const DeformConvShapes s =
      check_deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step);
  check_map(s, input.scalar_type());
  const ScalarType type = accumulate_type(input.scalar_type());
  const auto wide_offset = contiguous_as(offset, type), wide_mask = contiguous_as(mask, type),
             wide_bias = contiguous_as(bias, type);
  if (input.scalar_type() == ScalarType::BFloat16 && forward_kernels<float, BFloat16Bits>().run)
    return forward<float, BFloat16Bits>(s, input, torch::stable::contiguous(weight), wide_offset, wide_mask,
                                        wide_bias);
  const Tensor wide_input = torch::stable::to(input, type);
  const Tensor wide_weight = contiguous_as(weight, type);
  const Tensor output =
      type == ScalarType::Double
          ? forward<double, double>(s, wide_input, wide_weight, wide_offset, wide_mask, wide_bias)
          : forward<float, float>(s, wide_input, wide_weight, wide_offset, wide_mask, wide_bias);
  return torch::stable::to(output, input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
    std::optional<Tensor> mask, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step,
    const std::vector<bool>& output_mask) {
  const DeformConvShapes s = check_deform_conv(input, weight, offset, mask, std::nullopt, stride, padding,
                                               dilation, groups, im2col_step);
  check_grad_output(s, grad_output, input, offset, mask, output_mask);
  check_map(s, input.scalar_type());
  const ScalarType type = accumulate_type(input.scalar_type());
  const Tensor wide_grad = torch::stable::to(grad_output, type);
  const Tensor wide_input = torch::stable::to(input, type);
  const Tensor wide_weight = contiguous_as(weight, type);
  const auto wide_offset = contiguous_as(offset, type), wide_mask = contiguous_as(mask, type);
  const auto run = [&](auto gradients) {
    const auto narrow = [](const Tensor& gradient, const std::optional<Tensor>& like) {
      return like ? torch::stable::to(gradient, like->scalar_type()) : gradient;
    };
    Tensor grad_bias = torch::stable::new_empty(input, {0});
    if (output_mask[4])
      grad_bias = narrow(type == ScalarType::Double ? bias_gradient<double>(s, wide_grad)
                                                    : bias_gradient<float>(s, wide_grad),
                         input);
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
