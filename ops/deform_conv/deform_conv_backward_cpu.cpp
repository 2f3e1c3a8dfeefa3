// The backward of deform_conv on the CPU, the part that uses torch: checks, layouts, memory, threads.
#include "deform_conv_cpu.h"

namespace dcnzoo {
namespace {

// The sum of grad_output (of type E) over images and pixels, [out_channels], as T. Each block of pixels is summed
// separately, and the sums are added in the order of the blocks, in double. The result does not depend on the number of
// threads.
template <typename T, typename E = T>
Tensor bias_gradient(const DeformConvShapes& s, const Tensor& grad_output) {
  constexpr int64_t block_pixels = 2048;
  const Map map = as_map(grad_output);
  const int64_t image_blocks = ceil_div(s.out_pixels, block_pixels);
  const int64_t blocks = s.batch * image_blocks, channels = s.out_channels;
  const E* const from = data_of<E>(map.tensor);
  std::vector<double> sums(blocks * channels);
  for_each_task(blocks, [&](int64_t block) {
    const int64_t first = block % image_blocks * block_pixels;
    const int64_t count = std::min(block_pixels, s.out_pixels - first);
    const E* const image = from + block / image_blocks * channels * s.out_pixels;
    double* const sum = sums.data() + block * channels;
    if (map.channels_last) {
      for (int64_t i = first * channels; i < (first + count) * channels; i += channels)
        for (int64_t channel = 0; channel < channels; ++channel) sum[channel] += image[i + channel];
      return;
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      constexpr int lanes = 8;  // partial sums that the compiler can vectorise
      const E* const at = image + channel * s.out_pixels + first;
      double part[lanes] = {};
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) part[lane] += at[i + lane];
      for (; i < count; ++i) part[0] += at[i];
      for (int lane = 0; lane < lanes; ++lane) sum[channel] += part[lane];
    }
  });
  Tensor result =
      torch::stable::new_empty(grad_output, {channels}, accumulate_type(grad_output.scalar_type()));
  T* const to = mutable_data_of<T>(result);
  for (int64_t channel = 0; channel < channels; ++channel) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block * channels + channel];
    to[channel] = T(sum);
  }
  return result;
}

// Which gradients to compute, in the order of output_mask
struct Wanted {
  bool input, weight, offset, mask, bias;
  bool points() const { return offset || mask; }
};

// The division of a backward into passes and tiles, and the memory that its tasks share. Blocks and tiles, and with
// them the order of all sums, depend only on the shapes.
template <typename T>
struct BackwardWork {
  int64_t images;                        // of a pass
  int64_t blocks;                        // of a pass
  int64_t tile_rows;                     // output pixels of a tile
  Buffer<T> grad_weight;                 // packed
  Buffer<T> grad_offset_mask_of_blocks;  // as in DeformConvBackwardParams

  BackwardWork(const DeformConvShapes& s, const ChannelBlocking& blocking, int64_t packed_size,
               const Wanted& wanted)
      : grad_weight(wanted.weight ? packed_size : 0) {
    std::fill_n(grad_weight.data(), grad_weight.size(), T(0));
    const int64_t all = blocking.count(), threads = num_threads();
    const int64_t copied =
        blocking.stored() * s.in_pixels / all * int64_t(2 * sizeof(T));  // of a block and image
    images =
        std::clamp<int64_t>(kImagesBytes / std::max<int64_t>(copied, 1), 1, std::min(s.im2col_step, s.batch));
    const int64_t pixels = images * s.out_pixels;
    tile_rows = std::clamp(pixels * all / kEnoughTiles / 32 * 32, kLeastRows, kBackwardRows);
    bool shares = false;
    for (const ChannelBlock& block : blocking.blocks) shares |= block.shares_points;
    const int64_t own = shares && wanted.points() ? point_channels(s).count() * pixels : 0;
    const int64_t bytes = images * copied + own * int64_t(sizeof(T));
    const int64_t most = backward_staging_bytes(threads) / std::max<int64_t>(bytes, 1);
    const int64_t at_once = std::clamp<int64_t>(most, 1, std::min(threads, all));
    blocks = ceil_div(all, ceil_div(all, at_once));  // equally many in every pass
    grad_offset_mask_of_blocks = Buffer<T>(blocks * own);
  }
};

// The copies of a pass's blocks, and of their gradients
template <typename T, typename S>
struct Copies {
  Buffer<S> input;
  Buffer<T> gradient;
};

// Computes the gradients of p's images for p's blocks, except for shared points. A task is a tile of a block. A thread
// stays with a block as long as tiles are left. maps, grad_maps: the images of the input and of its gradient, or null.
template <typename T, typename S>
void differentiate_blocks(DeformConvBackwardParams<T, S> p, const S* maps, S* grad_maps, bool channels_last,
                          MapLayout layout, int64_t tile_rows, Copies<T, S>& copies) {
  const DeformConvBackward<T, S>& kernels = backward_kernels<T, S>();
  p.input = lay_out_input(p, layout);
  const int64_t size = p.images * p.input.image_size(p.shape.in_pixels);
  const bool in_place = layout == MapLayout::in_place;
  const bool copies_input = !in_place && (p.grad_weight || p.grad_offset_mask.any());
  // half a page: a load from one copy could wait for a store to the other whose address has the same last 12 bits
  constexpr int64_t apart = 2048 / sizeof(T);
  // gradients of bfloat16 are not summed in the result: their sums are float
  const bool copies_gradient = grad_maps && !(in_place && std::is_same_v<T, S>);
  p.input.data = copies_input ? at_least(size, copies.input) : in_place ? maps : nullptr;
  if constexpr (std::is_same_v<T, S>) p.grad_input = grad_maps;
  if (copies_gradient) p.grad_input = at_least(size + apart, copies.gradient) + apart;
  each_stretch(p, channels_last, [&](const auto& pixels) {
    if (copies_input) pixels.load(maps, copies.input.data());
    if (p.grad_input) pixels.clear(p.grad_input);
  });

  const int64_t blocks = p.blocks.end - p.blocks.begin, bytes = kernels.tile_bytes(p);
  const int64_t pixels = p.images * p.shape.out_pixels;
  TaskQueue queue(ceil_div(pixels, tile_rows) * blocks, blocks, TileSteps::count(p.weight_parts));
  queue.share_out([&](int64_t sequence) {
    char* const memory = thread_scratch<char>(bytes);
    for (int64_t task; queue.take(task, sequence);) {
      const int64_t first = task / blocks * tile_rows;
      kernels.compute_tile(
          p, {p.blocks.begin + task % blocks, first, std::min(tile_rows, pixels - first)}, memory,
          [&](int64_t index, const std::function<void()>& step) { queue.do_in_turn(task, index, step); });
    }
  });
  if (copies_gradient)
    each_stretch(p, channels_last, [&](const auto& pixels) { pixels.store(p.grad_input, grad_maps); });
}

DeformConvGradients new_gradients(const Map& input, const Tensor& weight, const std::optional<Tensor>& offset,
                                  const std::optional<Tensor>& mask, const Wanted& wanted) {
  const ScalarType stored = weight.scalar_type(), type = accumulate_type(stored);
  // a separate empty tensor for each: outputs must not alias
  const auto like = [&](bool is_wanted, const std::optional<Tensor>& tensor, ScalarType type) {
    return torch::stable::new_empty(weight, is_wanted ? sizes_of(*tensor) : std::vector<int64_t>{0}, type);
  };
  const bool channels_last = wanted.input && input.channels_last;
  return {channels_last ? new_channels_last(input.tensor, sizes_of(input.tensor), stored)
                        : like(wanted.input, input.tensor, stored),
          like(wanted.weight, weight, stored), like(wanted.offset, offset, type),
          like(wanted.mask, mask, type)};
}

// S is the type of grad_output, input, weight and their gradients; T is the type of the other gradients. Offset
// and mask are T or bfloat16.
template <typename T, typename S = T>
DeformConvGradients backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                             const Tensor& weight, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& mask, const Wanted& wanted) {
  const DeformConvBackward<T, S>& kernels = backward_kernels<T, S>();
  const Map map = as_map(input), grad_map = as_map(grad_output);
  DeformConvGradients gradients = new_gradients(map, weight, offset, mask, wanted);
  if (grad_output.numel() == 0) {
    for (Tensor* gradient : {&gradients.input, &gradients.weight, &gradients.offset, &gradients.mask})
      torch::stable::zero_(*gradient);
    return gradients;
  }

  // Inputs with few channels get narrower blocks. With AMX, blocks are wider: work that blocks repeat takes most of the
  // time. Those of narrow groups, too: they have little else than work that blocks repeat.
  const int64_t panel = kernels.panel;
  const Way way = choose_way(s, panel / 2);
  const bool narrow = is_narrow(way);
  const int64_t factor = narrow || kernels.depth_step > int64_t(sizeof(T) / sizeof(S)) ? 2 : 1;
  const int64_t most = factor * kBackwardBlockBytes / int64_t(sizeof(T)),
                few = round_up(s.channels / (narrow ? 1 : 2), panel);
  ChannelBlocking blocking(s, way, std::clamp(few, panel, most), panel);
  const int64_t packed_size = blocking.place_weights(sizeof(T) / sizeof(S), [&](const ChannelBlock& block) {
    return round_up(block.outputs, kernels.depth_step);
  });
  Buffer<S> packed;
  if (wanted.input || wanted.points())
    packed = pack_weight<S>(s, blocking, packed_size, weight, kernels.pack);
  const BackwardWork<T> work(s, blocking, packed_size, wanted);

  DeformConvBackwardParams<T, S> p{};
  p.shape = s, p.blocks.data = blocking.blocks.data();
  p.tile = blocking.tile(kBackwardRows, &ChannelBlock::gradient_row);
  p.weight = packed.data();
  p.grad_output.channels_last = grad_map.channels_last;
  p.grad_weight = work.grad_weight.data();
  const int64_t block_threads = ceil_div(num_threads(), work.blocks);
  // two threads hardly wait for each other if the products take most of the time
  const int64_t outputs = narrow ? 0 : s.group_outputs();  // of a matrix product
  p.input_apart = block_threads > (outputs > kFewOutputs ? 2 : 1);
  p.weight_parts = std::clamp<int64_t>(outputs / kLeastOutputs, 1, block_threads);
  p.grad_offset_mask_of_blocks = work.grad_offset_mask_of_blocks.data();
  const StoredOffsetMask<T> offset_mask = stored_offset_mask<T>(offset, mask);
  const OffsetMask<T> grad_offset_mask{wanted.offset ? gradients.offset.mutable_data_ptr<T>() : nullptr,
                                       wanted.mask ? gradients.mask.mutable_data_ptr<T>() : nullptr};
  const int64_t image_size = s.channels * s.in_pixels;
  S* const grad_input = wanted.input ? mutable_data_of<S>(gradients.input) : nullptr;
  const MapLayout layout = blocking.input_layout(map.channels_last, true);
  Copies<T, S> copies;
  for (int64_t first = 0; first < s.batch; first += work.images) {
    p.images = std::min(work.images, s.batch - first);
    p.offset_mask = offset_mask.from_image(s, first);
    p.grad_output.data = data_of<S>(grad_map.tensor) + first * s.out_pixels * s.out_channels;
    p.grad_offset_mask = grad_offset_mask.from_image(s, first);
    for (p.blocks.end = 0; p.blocks.end < blocking.count();) {
      p.blocks.begin = p.blocks.end;
      p.blocks.end = std::min(p.blocks.begin + work.blocks, blocking.count());
      differentiate_blocks(p, data_of<S>(map.tensor) + first * image_size,
                           grad_input ? grad_input + first * image_size : nullptr, map.channels_last, layout,
                           work.tile_rows, copies);
      const int64_t channels = work.grad_offset_mask_of_blocks.size() ? point_channels(s).count() : 0;
      const auto sum = [&](int64_t i) { kernels.sum_offset_mask(p, i / channels, i % channels); };
      for_each_task(p.images * channels, sum);
    }
  }
  if (wanted.weight) {
    const auto to = weight_of(s, mutable_data_of<S>(gradients.weight), false);
    each_piece(blocking, [&](const ChannelBlock& block, const Piece& piece) {
      kernels.unpack_weight_gradient(s, block, piece, work.grad_weight.data(), to);
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
                                               dilation, groups, im2col_step, grad_output);
  check_output_mask(s, input, offset, mask, output_mask);
  check_map(s, input.scalar_type());
  const Wanted wanted{output_mask[0], output_mask[1], output_mask[2], output_mask[3], output_mask[4]};
  const ScalarType type = accumulate_type(input.scalar_type());
  const bool is_double = type == ScalarType::Double;
  // whether to compute bfloat16 as it is stored
  const bool in_bfloat16 = input.scalar_type() == ScalarType::BFloat16 && multiplies_bfloat16(s);
  const ScalarType stored = in_bfloat16 ? ScalarType::BFloat16 : type;
  const Tensor grad = as_type(grad_output, stored);
  const auto differentiate = in_bfloat16 ? backward<float, BFloat16Bits>
                             : is_double ? backward<double>
                                         : backward<float>;
  const DeformConvGradients sums = differentiate(s, grad, as_type(input, stored), as_type(weight, stored),
                                                 as_readable(offset, type), as_readable(mask, type), wanted);
  Tensor grad_bias = torch::stable::new_empty(grad, {0});
  if (wanted.bias) {
    const auto sum = in_bfloat16 ? bias_gradient<float, torch::headeronly::BFloat16>
                     : is_double ? bias_gradient<double>
                                 : bias_gradient<float>;
    grad_bias = sum(s, grad);
  }
  return {to_type_of(input, sums.input), to_type_of(weight, sums.weight), to_type_of(offset, sums.offset),
          to_type_of(mask, sums.mask), to_type_of(input, grad_bias)};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("_deform_conv_backward", TORCH_BOX(&dcnzoo::deform_conv_backward_cpu));
}
