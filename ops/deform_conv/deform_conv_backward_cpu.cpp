// The backward of deform_conv on the CPU, the part that uses torch: checks, layouts, memory, threads.
#include "deform_conv_cpu.h"

namespace dcnzoo {
namespace {

template <typename T>
const DeformConvBackward<T>& backward_kernels() {
  return deform_conv_backward_kernels_dispatched().of<T>();
}

template <typename T>
void transpose_map(const T* from, T* to, int64_t rows, int64_t columns) {
  for (int64_t stretch = 0; stretch * kStretch < columns; ++stretch)
    transpose_stretch<T>(from, to, rows, columns, stretch);
}

// The memory of a task: a channel block of some images, channels last, and its gradient.
template <typename T>
class StagedBlock {
 public:
  // Copies the block of images [begin, end) and sets p.input to the copy.
  void load(DeformConvBackwardParams<T>& p, const ChannelBlock& block, int64_t begin, int64_t end) {
    const DeformConvShapes& s = p.shape;
    const int64_t image_size = block.count * s.in_pixels, size = (end - begin) * image_size;
    const T* const input = p.input.data;
    p.input = {input, begin, block.first, block.count};
    if (p.grad_weight || p.grad_offset_mask.offset || p.grad_offset_mask.mask) {
      if (input_.size() < size) input_ = Buffer<T>(size);
      for (int64_t image = begin; image < end; ++image)
        transpose_map(input + (image * s.channels + block.first) * s.in_pixels,
                      input_.data() + (image - begin) * image_size, block.count, s.in_pixels);
      p.input.data = input_.data();
    }
    if (p.grad_input == nullptr) return;
    if (gradient_.size() < size) gradient_ = Buffer<T>(size);
    std::fill_n(gradient_.data(), size, T(0));
    p.grad_input = gradient_.data();
  }

  void store_gradient(const DeformConvBackwardParams<T>& p, const ChannelBlock& block, int64_t begin,
                      int64_t end) const {
    const DeformConvShapes& s = p.shape;
    for (int64_t image = begin; image < end; ++image)
      transpose_map(gradient_.data() + (image - begin) * block.count * s.in_pixels,
                    p.grad_input + (image * s.channels + block.first) * s.in_pixels, s.in_pixels,
                    block.count);
  }

 private:
  Buffer<T> input_, gradient_;
};

// The sum of grad_output over images and pixels, [out_channels]. Each block of pixels is summed separately, and the
// sums are added in the order of the blocks, in double. The result does not depend on the number of threads.
template <typename T>
Tensor bias_gradient(const DeformConvShapes& s, const Tensor& grad_output) {
  constexpr int64_t block_pixels = 2048;
  const Map map = as_map(grad_output);
  const int64_t image_blocks = ceil_div(s.out_pixels, block_pixels);
  const int64_t blocks = s.batch * image_blocks, channels = s.out_channels;
  const T* const from = static_cast<const T*>(map.tensor.const_data_ptr());
  std::vector<double> sums(blocks * channels);
  parallel_each(blocks, [&](int64_t block) {
    const int64_t first = block % image_blocks * block_pixels;
    const int64_t count = std::min(block_pixels, s.out_pixels - first);
    const T* const image = from + block / image_blocks * channels * s.out_pixels;
    double* const sum = sums.data() + block * channels;
    if (map.channels_last) {
      for (int64_t i = first * channels; i < (first + count) * channels; i += channels)
        for (int64_t channel = 0; channel < channels; ++channel) sum[channel] += image[i + channel];
      return;
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      constexpr int lanes = 8;  // partial sums that the compiler can vectorise
      const T* const at = image + channel * s.out_pixels + first;
      double part[lanes] = {};
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) part[lane] += at[i + lane];
      for (; i < count; ++i) part[0] += at[i];
      for (int lane = 0; lane < lanes; ++lane) sum[channel] += part[lane];
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

// The division of a backward into images, parts and passes, and the memory that its tasks share.
template <typename T>
struct BackwardWork {
  int64_t images;  // at a time
  int64_t parts;   // of these images, run in parallel if blocks are few; each has its own weight gradient
  int64_t packed_size;                   // of a weight gradient
  bool shares;                           // whether blocks share points whose gradient is needed
  int64_t pass_blocks;                   // blocks of a pass
  Buffer<T> grad_weight;                 // [part][packed_size]
  Buffer<T> grad_offset_mask_of_blocks;  // as in DeformConvBackwardParams

  BackwardWork(const DeformConvShapes& s, const ChannelBlocking& blocking, int64_t packed_size,
               const std::vector<bool>& wanted)
      : packed_size(packed_size), shares(false) {
    const int64_t all = blocking.count(), image_size = s.channels * s.in_pixels;
    images = images_at_a_time(s, image_size / all * int64_t(2 * sizeof(T)));
    parts = std::clamp<int64_t>(16 / all, 1, std::min(images, s.batch));
    grad_weight = Buffer<T>(wanted[1] ? parts * packed_size : 0);
    std::fill_n(grad_weight.data(), grad_weight.size(), T(0));
    for (const ChannelBlock& block : blocking.blocks) shares |= block.shares_points;
    shares &= wanted[2] || wanted[3];
    const int64_t points = s.taps * (s.rank + 1) * std::min(images, s.batch) * s.out_pixels;
    const int64_t block_size = shares ? points : 0;
    pass_blocks = std::max(kStagingBytes / std::max<int64_t>(block_size * int64_t(sizeof(T)), 1),
                           int64_t(4) * num_threads());
    grad_offset_mask_of_blocks = Buffer<T>(std::min(pass_blocks, all) * block_size);
  }
};

// Computes the gradients of p's images for p's blocks.
template <typename T>
void run_blocks(const DeformConvBackwardParams<T>& p, const BackwardWork<T>& work, bool staged) {
  const DeformConvBackward<T>& kernels = backward_kernels<T>();
  const int64_t scratch = kernels.scratch_bytes(p), blocks = p.blocks.end - p.blocks.begin;
  const int64_t part_images = ceil_div(p.images, work.parts);
  TaskQueue queue(ceil_div(p.images, part_images) * blocks);
  queue.run([&] {
    char* const memory = thread_scratch<char>(scratch);
    StagedBlock<T> stage;
    for (int64_t task; queue.take(task);) {
      const int64_t part = task / blocks, i = p.blocks.begin + task % blocks;
      const int64_t begin = part * part_images, end = std::min(begin + part_images, p.images);
      const ChannelBlock& block = p.blocks.data[i];
      DeformConvBackwardParams<T> mine = p;
      if (work.grad_weight.size()) mine.grad_weight = work.grad_weight.data() + part * work.packed_size;
      if (staged) stage.load(mine, block, begin, end);
      kernels.run(mine, i, begin, end, memory);
      if (staged && p.grad_input) stage.store_gradient(p, block, begin, end);
    }
  });
  if (!work.shares) return;
  const int64_t channels = p.shape.taps * (p.shape.rank + 1);
  parallel_each(p.images * channels,
                [&](int64_t i) { kernels.sum_offset_mask(p, i / channels, i % channels); });
}

DeformConvGradients new_gradients(const Map& input, const Tensor& weight, const std::optional<Tensor>& offset,
                                  const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  // a separate empty tensor for each: outputs must not alias
  const auto like = [&](bool is_wanted, const std::optional<Tensor>& tensor) {
    return torch::stable::new_empty(weight, is_wanted ? sizes_of(*tensor) : std::vector<int64_t>{0});
  };
  const bool channels_last = wanted[0] && input.channels_last;
  return {
      channels_last ? new_channels_last(input.tensor, sizes_of(input.tensor)) : like(wanted[0], input.tensor),
      like(wanted[1], weight), like(wanted[2], offset), like(wanted[3], mask)};
}

template <typename T>
DeformConvGradients backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                             const Tensor& weight, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  const DeformConvBackward<T>& kernels = backward_kernels<T>();
  const Map map = as_map(input), grad_map = as_map(grad_output);
  DeformConvGradients gradients = new_gradients(map, weight, offset, mask, wanted);
  if (grad_output.numel() == 0) {
    for (Tensor* gradient : {&gradients.input, &gradients.weight, &gradients.offset, &gradients.mask})
      torch::stable::zero_(*gradient);
    return gradients;
  }

  // Blocks are the unit of parallel work: no two write the same elements of the gradients of input and weight. Inputs
  // with few channels get narrower blocks. Blocks, and with them the order of all sums, depend only on the shapes.
  const int64_t most = kBlockBytes / int64_t(sizeof(T)), panel = forward_kernels<T, T>().panel;
  ChannelBlocking blocking(s, std::clamp(round_up(s.channels / 2, panel), panel, most), panel);
  const int64_t packed_size =
      blocking.place_weights([](const ChannelBlock& block) { return block.panel_outputs; });
  Buffer<T> packed;
  if (wanted[0] || wanted[2] || wanted[3])
    packed = pack_weight<T>(s, blocking, packed_size, weight, kernels.pack);
  const BackwardWork<T> work(s, blocking, packed_size, wanted);

  DeformConvBackwardParams<T> p{};
  p.shape = s, p.tile = blocking.tile(), p.blocks.data = blocking.blocks.data();
  p.weight = packed.data();
  p.grad_output.channels_last = grad_map.channels_last;
  p.grad_offset_mask_of_blocks = work.grad_offset_mask_of_blocks.data();
  const OffsetMask<const T> offset_mask{data_or_null<T>(offset), data_or_null<T>(mask)};
  const OffsetMask<T> grad_offset_mask{wanted[2] ? gradients.offset.mutable_data_ptr<T>() : nullptr,
                                       wanted[3] ? gradients.mask.mutable_data_ptr<T>() : nullptr};
  const int64_t image_size = s.channels * s.in_pixels;
  for (int64_t first = 0; first < s.batch; first += work.images) {
    p.images = std::min(work.images, s.batch - first);
    p.input = {map.tensor.const_data_ptr<T>() + first * image_size, 0, 0, s.channels};
    p.offset_mask = from_image(s, offset_mask, first);
    p.grad_output.data = grad_map.tensor.const_data_ptr<T>() + first * s.out_pixels * s.out_channels;
    p.grad_offset_mask = from_image(s, grad_offset_mask, first);
    p.grad_input = wanted[0] ? gradients.input.mutable_data_ptr<T>() + first * image_size : nullptr;
    if (wanted[0] && map.channels_last) zero(p.grad_input, p.images * image_size);
    for (p.blocks.end = 0; p.blocks.end < blocking.count();) {
      p.blocks.begin = p.blocks.end;
      p.blocks.end = std::min(p.blocks.begin + work.pass_blocks, blocking.count());
      run_blocks(p, work, !map.channels_last);
    }
  }
  if (wanted[1]) {
    T* const to = gradients.weight.mutable_data_ptr<T>();
    parallel_each(blocking.count(), [&](int64_t i) {
      for (int64_t part = 0; part < work.parts; ++part)
        kernels.unpack_weight_gradient(s, blocking.blocks[i], work.grad_weight.data() + part * packed_size,
                                       to, part > 0);
    });
  }
  return gradients;
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
  const bool is_double = type == ScalarType::Double;
  const Tensor wide_grad = as_type(grad_output, type);
  const auto run = is_double ? backward<double> : backward<float>;
  const DeformConvGradients sums = run(s, wide_grad, as_type(input, type), contiguous_as(weight, type),
                                       contiguous_as(offset, type), contiguous_as(mask, type), output_mask);
  Tensor grad_bias = torch::stable::new_empty(wide_grad, {0});
  if (output_mask[4]) grad_bias = (is_double ? bias_gradient<double> : bias_gradient<float>)(s, wide_grad);
  return {to_type_of(input, sums.input), to_type_of(weight, sums.weight), to_type_of(offset, sums.offset),
          to_type_of(mask, sums.mask), to_type_of(input, grad_bias)};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("_deform_conv_backward", TORCH_BOX(&dcnzoo::deform_conv_backward_cpu));
}
