// The backward of deform_conv on the CPU, the part that uses torch: checks, layouts, memory, threads.
#include "deform_conv_cpu.h"

namespace dcnzoo {
namespace {

template <typename T, typename S>
const DeformConvBackward<T, S>& backward_kernels() {
  return deform_conv_backward_kernels_dispatched().of<T, S>();
}

// Copies of a channel block of images [begin, end), channels last, and of its gradient: [image][pixel][channel].
template <typename T, typename S>
class StagedBlock {
 public:
  // Allocates the copies, and returns p with the copies as its maps.
  DeformConvBackwardParams<T, S> allocate(const DeformConvBackwardParams<T, S>& p, const ChannelBlock& block,
                                          int64_t begin, int64_t end) {
    const int64_t size = (end - begin) * p.shape.in_pixels * block.count;
    block_ = block, first_image_ = begin, pieces_ = (end - begin) * stretches(p.shape);
    DeformConvBackwardParams<T, S> mine = p;
    mine.input = {p.input.data, begin, block.first, block.count, true};
    if (reads_input(p)) mine.input.data = at_least(size, input_);
    if (p.grad_input) mine.grad_input = at_least(size, gradient_);
    return mine;
  }

  int64_t pieces() const { return pieces_; }

  // Copies a piece of the input and clears its gradient.
  void load(const DeformConvBackwardParams<T, S>& p, int64_t piece) const {
    const DeformConvShapes& s = p.shape;
    const int64_t image = piece / stretches(s), stretch = piece % stretches(s), first = stretch * kStretch;
    const int64_t to = image * s.in_pixels * block_.count;
    if (reads_input(p))
      transpose_stretch<T, S>(p.input.data + map_at(s, image), input_.data() + to, block_.count, s.in_pixels,
                              stretch);
    if (p.grad_input)
      std::fill_n(gradient_.data() + to + first * block_.count,
                  std::min(kStretch, s.in_pixels - first) * block_.count, T(0));
  }

  void store_gradient(const DeformConvBackwardParams<T, S>& p, int64_t piece) const {
    const DeformConvShapes& s = p.shape;
    const int64_t image = piece / stretches(s), first = piece % stretches(s) * kStretch;
    forward_kernels<T, T>().transpose(gradient_.data() + (image * s.in_pixels + first) * block_.count,
                                      block_.count, p.grad_input + map_at(s, image) + first, s.in_pixels,
                                      std::min(kStretch, s.in_pixels - first), block_.count);
  }

 private:
  static int64_t stretches(const DeformConvShapes& s) { return ceil_div(s.in_pixels, kStretch); }
  static bool reads_input(const DeformConvBackwardParams<T, S>& p) {
    return p.grad_weight || p.grad_offset_mask.offset || p.grad_offset_mask.mask;
  }
  template <typename E>
  static E* at_least(int64_t size, Buffer<E>& buffer) {
    if (buffer.size() < size) buffer = Buffer<E>(size);
    return buffer.data();
  }
  int64_t map_at(const DeformConvShapes& s, int64_t image) const {
    return ((first_image_ + image) * s.channels + block_.first) * s.in_pixels;
  }

  ChannelBlock block_{};
  int64_t first_image_ = 0, pieces_ = 0;
  Buffer<S> input_;
  Buffer<T> gradient_;
};

// The sum of grad_output (of type E) over images and pixels, [out_channels], as T. Each block of pixels is summed
// separately, and the sums are added in the order of the blocks, in double. The result does not depend on the number of
// threads.
template <typename T, typename E = T>
Tensor bias_gradient(const DeformConvShapes& s, const Tensor& grad_output) {
  constexpr int64_t block_pixels = 2048;
  const Map map = as_map(grad_output);
  const int64_t image_blocks = ceil_div(s.out_pixels, block_pixels);
  const int64_t blocks = s.batch * image_blocks, channels = s.out_channels;
  const E* const from = static_cast<const E*>(map.tensor.const_data_ptr());
  std::vector<double> sums(blocks * channels);
  parallel_each(blocks, [&](int64_t block) {
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
  int64_t images;         // at a time
  int64_t parts;          // of these images, if blocks are few; each has its own weight gradient
  int64_t pass_blocks;    // blocks of a pass
  bool shared_blocks;     // whether several threads work on a block of a part
  bool shares;            // whether blocks share points whose gradient is needed
  int64_t packed_size;    // of a weight gradient
  Buffer<T> grad_weight;  // [part][packed_size]
  Buffer<T> grad_offset_mask_of_blocks;  // as in DeformConvBackwardParams

  BackwardWork(const DeformConvShapes& s, const ChannelBlocking& blocking, int64_t packed_size,
               const std::vector<bool>& wanted)
      : shares(false), packed_size(packed_size) {
    const int64_t all = blocking.count(), threads = num_threads();
    const int64_t block_bytes = s.channels * s.in_pixels / all * int64_t(2 * sizeof(T));
    images = images_at_a_time(s, block_bytes);
    const int64_t now = std::min(images, s.batch), pixels = now * s.out_pixels;
    parts = std::clamp<int64_t>(16 / all, 1, now);
    // Sharing costs time: the memory of tiles does not stay in a core's cache.
    const bool uneven = 4 * round_up(all * parts, threads) > 5 * all * parts;
    shared_blocks = uneven && s.taps * s.channels * pixels / parts >= kLeastSamples;
    grad_weight = Buffer<T>(wanted[1] ? parts * packed_size : 0);
    std::fill_n(grad_weight.data(), grad_weight.size(), T(0));
    for (const ChannelBlock& block : blocking.blocks) shares |= block.shares_points;
    shares &= wanted[2] || wanted[3];
    const int64_t block_size = shares ? s.taps * (s.rank + 1) * pixels : 0;
    pass_blocks = std::max(kStagingBytes / std::max<int64_t>(block_size * int64_t(sizeof(T)), 1),
                           kThreadTasks * threads);
    if (shared_blocks) {
      const int64_t staged = staging_limit(threads) / std::max<int64_t>(now / parts * block_bytes, 1);
      pass_blocks = ceil_div(all, ceil_div(all, std::clamp<int64_t>(staged, 1, pass_blocks)));
    }
    grad_offset_mask_of_blocks = Buffer<T>(std::min(pass_blocks, all) * block_size);
  }

  // Returns p with the weight gradient of a part.
  template <typename S>
  DeformConvBackwardParams<T, S> params(const DeformConvBackwardParams<T, S>& p, int64_t part) const {
    DeformConvBackwardParams<T, S> result = p;
    if (grad_weight.size()) result.grad_weight = grad_weight.data() + part * packed_size;
    return result;
  }
};

template <typename T>
int64_t panels_of(const ChannelBlock& block) {
  return block.depth / forward_kernels<T, T>().panel;
}

// The bytes of a block's packed weight.
template <typename T, typename S>
int64_t weight_bytes(const DeformConvBackwardParams<T, S>& p) {
  return p.tile.depth * p.blocks.data->panel_outputs * int64_t(sizeof(S));
}

// Computes the gradients of p's images for p's blocks, except for shared points. A task is a block of a part.
template <typename T, typename S>
void run_blocks(const DeformConvBackwardParams<T, S>& p, const BackwardWork<T>& work, bool staged) {
  const DeformConvBackward<T, S>& kernels = backward_kernels<T, S>();
  const int64_t bytes = kernels.tile_bytes(p), blocks = p.blocks.end - p.blocks.begin;
  const int64_t part_images = ceil_div(p.images, work.parts);
  const int64_t tiles = ceil_div(part_images * p.shape.out_pixels, p.tile.rows);
  TaskQueue queue(ceil_div(p.images, part_images) * blocks, tiles * 2 * weight_bytes(p));
  queue.run([&] {
    char* const memory = thread_scratch<char>(bytes);
    StagedBlock<T, S> stage;
    for (int64_t task; queue.take(task);) {
      const TaskQueue::Timer timer(queue, task);
      const int64_t part = task / blocks, i = p.blocks.begin + task % blocks;
      const int64_t begin = part * part_images, end = std::min(begin + part_images, p.images);
      const ChannelBlock& block = p.blocks.data[i];
      const DeformConvBackwardParams<T, S> all = work.params(p, part);
      const DeformConvBackwardParams<T, S> mine = staged ? stage.allocate(all, block, begin, end) : all;
      for (int64_t piece = 0; piece < stage.pieces(); ++piece) stage.load(all, piece);
      const int64_t pixels = end * p.shape.out_pixels;
      for (int64_t first = begin * p.shape.out_pixels; first < pixels; first += p.tile.rows) {
        const BackwardTile tile{i, first, std::min(p.tile.rows, pixels - first), memory};
        kernels.run(mine, tile, 0, tile.rows);
        if (mine.grad_weight)
          kernels.add_weight_gradient(mine, tile, {0, panels_of<T>(block), 0, block.panel_outputs});
      }
      for (int64_t piece = 0; p.grad_input && piece < stage.pieces(); ++piece)
        stage.store_gradient(all, piece);
    }
  });
}

// Does the same for one part, images [begin, end), whose blocks several threads share. The order of every sum is that of
// run_blocks.
template <typename T, typename S>
void run_shared_blocks(const DeformConvBackwardParams<T, S>& p, int64_t begin, int64_t end, bool staged) {
  const DeformConvBackward<T, S>& kernels = backward_kernels<T, S>();
  const int64_t threads = num_threads(), tasks = kThreadTasks * threads;
  const int64_t blocks = p.blocks.end - p.blocks.begin, lanes = forward_kernels<T, T>().panel / 2;
  const ChannelBlock* const block = p.blocks.data + p.blocks.begin;
  std::vector<StagedBlock<T, S>> stages(blocks);
  std::vector<DeformConvBackwardParams<T, S>> mine(blocks, p);
  int64_t channels = 1, panels = 1, outputs = 1;  // the most of a block
  for (int64_t b = 0; b < blocks; ++b) {
    if (staged) mine[b] = stages[b].allocate(p, block[b], begin, end);
    channels = std::max(channels, block[b].count);
    panels = std::max(panels, panels_of<T>(block[b]));
    outputs = std::max(outputs, block[b].panel_outputs);
  }
  const int64_t first_pixel = begin * p.shape.out_pixels, pixels = end * p.shape.out_pixels - first_pixel;
  const int64_t tiles = ceil_div(pixels, p.tile.rows), bytes = kernels.tile_bytes(p);
  const int64_t most_tiles = std::max<int64_t>(tiles_limit(threads) / (bytes * blocks), 1);
  const int64_t some_tiles = ceil_div(tiles, ceil_div(tiles, most_tiles));  // at a time
  const Buffer<char> memory(some_tiles * blocks * bytes);

  const int64_t pieces = stages[0].pieces();
  run_tasks(Tasks{blocks * pieces, 0, [&](int64_t task) { stages[task / pieces].load(p, task % pieces); }});
  for (int64_t first = 0; first < tiles; first += some_tiles) {
    const int64_t count = std::min(some_tiles, tiles - first);
    const auto tile_of = [&](int64_t b, int64_t t) {
      const int64_t pixel = (first + t) * p.tile.rows;
      return BackwardTile{p.blocks.begin + b, first_pixel + pixel, std::min(p.tile.rows, pixels - pixel),
                          memory.data() + (b * count + t) * bytes};
    };

    // First, some rows of a tile per task.
    constexpr int64_t least_rows = 16;
    const int64_t wanted = std::clamp<int64_t>(ceil_div(tasks, count * blocks), 1, p.tile.rows / least_rows);
    const int64_t rows = round_up(ceil_div(p.tile.rows, wanted), least_rows);
    const int64_t row_parts = ceil_div(p.tile.rows, rows);
    const auto run_rows = [&](int64_t task) {
      const int64_t b = task / row_parts / count, from = task % row_parts * rows;
      const BackwardTile tile = tile_of(b, task / row_parts % count);
      if (from < tile.rows) kernels.run(mine[b], tile, from, std::min(from + rows, tile.rows));
    };
    run_tasks(Tasks{blocks * count * row_parts, weight_bytes(p), run_rows});

    // Then, for all tiles, some channels of the input's gradient or a part of the weight's per task. The part's outputs
    // fit the L1 cache with a panel.
    constexpr int64_t least_outputs = 32, most_outputs = 96;
    const int64_t channel_parts =
        std::clamp<int64_t>(ceil_div(threads, blocks), 1, ceil_div(channels, lanes));
    const int64_t part_channels = round_up(ceil_div(channels, channel_parts), lanes);
    const auto add_input = [&](int64_t task) {
      const int64_t b = task / channel_parts, from = task % channel_parts * part_channels;
      const int64_t to = std::min(from + part_channels, block[b].count);
      for (int64_t t = 0; t < count && from < to; ++t)
        kernels.add_input_gradient(mine[b], tile_of(b, t), from, to);
    };
    const int64_t output_parts = std::clamp(ceil_div(tasks, blocks * panels), ceil_div(outputs, most_outputs),
                                            ceil_div(outputs, least_outputs));
    const int64_t part_outputs = round_up(ceil_div(outputs, output_parts), lanes);
    const int64_t part_panels = std::clamp<int64_t>(blocks * panels * output_parts / tasks, 1, panels);
    const int64_t panel_parts = ceil_div(panels, part_panels);
    const auto add_weight = [&](int64_t task) {
      const int64_t b = task / output_parts / panel_parts;
      const int64_t panel = task / output_parts % panel_parts * part_panels;
      const int64_t output = task % output_parts * part_outputs;
      const WeightPart part{panel, std::min(panel + part_panels, panels_of<T>(block[b])), output,
                            std::min(output + part_outputs, block[b].panel_outputs)};
      for (int64_t t = 0; t < count && part.output_begin < part.output_end; ++t)
        kernels.add_weight_gradient(mine[b], tile_of(b, t), part);
    };
    const int64_t row_bytes = count * p.tile.rows * int64_t(sizeof(T));
    run_tasks(
        Tasks{p.grad_input ? blocks * channel_parts : 0, row_bytes * p.shape.taps * part_channels, add_input},
        Tasks{p.grad_weight ? blocks * panel_parts * output_parts : 0,
              row_bytes * (part_panels * 2 * lanes + part_outputs), add_weight});
  }
  const auto store = [&](int64_t task) { stages[task / pieces].store_gradient(p, task % pieces); };
  run_tasks(Tasks{p.grad_input ? blocks * pieces : 0, 0, store});
}

DeformConvGradients new_gradients(const Map& input, const Tensor& weight, const std::optional<Tensor>& offset,
                                  const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  const ScalarType type = accumulate_type(weight.scalar_type());
  // a separate empty tensor for each: outputs must not alias
  const auto like = [&](bool is_wanted, const std::optional<Tensor>& tensor) {
    return torch::stable::new_empty(weight, is_wanted ? sizes_of(*tensor) : std::vector<int64_t>{0}, type);
  };
  const bool channels_last = wanted[0] && input.channels_last;
  return {channels_last ? new_channels_last(input.tensor, sizes_of(input.tensor), type)
                        : like(wanted[0], input.tensor),
          like(wanted[1], weight), like(wanted[2], offset), like(wanted[3], mask)};
}

// S is the type of grad_output, input and weight; T is the type of offset, mask and gradients.
template <typename T, typename S = T>
DeformConvGradients backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                             const Tensor& weight, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& mask, const std::vector<bool>& wanted) {
  const DeformConvBackward<T, S>& kernels = backward_kernels<T, S>();
  const Map map = as_map(input), grad_map = as_map(grad_output);
  DeformConvGradients gradients = new_gradients(map, weight, offset, mask, wanted);
  if (grad_output.numel() == 0) {
    for (Tensor* gradient : {&gradients.input, &gradients.weight, &gradients.offset, &gradients.mask})
      torch::stable::zero_(*gradient);
    return gradients;
  }

  // Blocks are the unit of parallel work: no two write the same elements of the gradients of input and weight. Inputs
  // with few channels get narrower blocks. Blocks, and with them the order of all sums, depend only on the shapes.
  const int64_t most = kBackwardTile.block_bytes / int64_t(sizeof(T)), panel = forward_kernels<T, T>().panel;
  ChannelBlocking blocking(s, std::clamp(round_up(s.channels / 2, panel), panel, most), panel);
  const int64_t packed_size = blocking.place_weights([](const ChannelBlock& block) {
    return round_up(block.panel_outputs, int64_t(sizeof(T) / sizeof(S)));
  });
  Buffer<S> packed;
  if (wanted[0] || wanted[2] || wanted[3])
    packed = pack_weight<S>(s, blocking, packed_size, weight, kernels.pack);
  const BackwardWork<T> work(s, blocking, packed_size, wanted);

  DeformConvBackwardParams<T, S> p{};
  p.shape = s, p.tile = blocking.tile(kBackwardTile.rows), p.blocks.data = blocking.blocks.data();
  p.weight = packed.data();
  p.grad_output.channels_last = grad_map.channels_last;
  p.grad_weight = work.grad_weight.data();  // of the first part
  p.input_later = work.shared_blocks;
  p.grad_offset_mask_of_blocks = work.grad_offset_mask_of_blocks.data();
  const OffsetMask<const T> offset_mask{data_or_null<T>(offset), data_or_null<T>(mask)};
  const OffsetMask<T> grad_offset_mask{wanted[2] ? gradients.offset.mutable_data_ptr<T>() : nullptr,
                                       wanted[3] ? gradients.mask.mutable_data_ptr<T>() : nullptr};
  const int64_t image_size = s.channels * s.in_pixels;
  for (int64_t first = 0; first < s.batch; first += work.images) {
    p.images = std::min(work.images, s.batch - first);
    p.input = {static_cast<const S*>(map.tensor.const_data_ptr()) + first * image_size, 0, 0, s.channels,
               false};
    p.offset_mask = from_image(s, offset_mask, first);
    p.grad_output.data =
        static_cast<const S*>(grad_map.tensor.const_data_ptr()) + first * s.out_pixels * s.out_channels;
    p.grad_offset_mask = from_image(s, grad_offset_mask, first);
    p.grad_input = wanted[0] ? gradients.input.mutable_data_ptr<T>() + first * image_size : nullptr;
    if (wanted[0] && map.channels_last) zero(p.grad_input, p.images * image_size);
    for (p.blocks.end = 0; p.blocks.end < blocking.count();) {
      p.blocks.begin = p.blocks.end;
      p.blocks.end = std::min(p.blocks.begin + work.pass_blocks, blocking.count());
      if (work.shared_blocks) {
        const int64_t part_images = ceil_div(p.images, work.parts);
        for (int64_t begin = 0; begin < p.images; begin += part_images)
          run_shared_blocks(work.params(p, begin / part_images), begin,
                            std::min(begin + part_images, p.images), !map.channels_last);
      } else {
        run_blocks(p, work, !map.channels_last);
      }
      const int64_t channels = work.shares ? s.taps * (s.rank + 1) : 0;
      const auto sum = [&](int64_t i) { kernels.sum_offset_mask(p, i / channels, i % channels); };
      run_tasks(Tasks{p.images * channels, 0, sum});
    }
  }
  if (wanted[1]) {
    const auto to = weight_of(s, gradients.weight.mutable_data_ptr<T>(), false);
    each_piece(blocking, [&](const ChannelBlock& block, const Piece& piece) {
      for (int64_t part = 0; part < work.parts; ++part)
        kernels.unpack_weight_gradient(s, block, piece, work.grad_weight.data() + part * packed_size, to,
                                       part > 0);
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
  const auto wide_offset = contiguous_as(offset, type), wide_mask = contiguous_as(mask, type);
  const bool is_double = type == ScalarType::Double;
  // whether to multiply bfloat16
  const bool narrow = input.scalar_type() == ScalarType::BFloat16 && !s.is_depthwise() &&
                      backward_kernels<float, BFloat16Bits>().run;
  const ScalarType stored = narrow ? ScalarType::BFloat16 : type;
  const Tensor grad = as_type(grad_output, stored);
  const auto run = narrow ? backward<float, BFloat16Bits> : is_double ? backward<double> : backward<float>;
  const DeformConvGradients sums =
      run(s, grad, as_type(input, stored), as_type(weight, stored), wide_offset, wide_mask, output_mask);
  Tensor grad_bias = torch::stable::new_empty(grad, {0});
  if (output_mask[4]) {
    const auto sum = narrow      ? bias_gradient<float, torch::headeronly::BFloat16>
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
