// The forward of deform_conv on the CPU, the part that uses torch: checks, layouts, memory, threads.
#include "deform_conv_cpu.h"

namespace dcnzoo {
namespace {

// The images that are copied at a time: as many as an L2 cache can hold, but enough to keep all threads busy.
inline int64_t images_at_a_time(const DeformConvShapes& s, int64_t image_bytes) {
  const int64_t busy = ceil_div(kThreadTasks * num_threads() * kForwardRows, s.out_pixels);
  const auto fitting = [&](int64_t bytes) { return bytes / std::max<int64_t>(image_bytes, 1); };
  return std::clamp<int64_t>(std::max(fitting(kImagesBytes / 2), busy), 1,
                             std::min(s.im2col_step, std::max<int64_t>(fitting(kStagingBytes), 1)));
}

// The output pixels of a tile: large tiles that divide evenly among threads. No result depends on them: every output
// has its own sums.
inline int64_t tile_rows(int64_t pixels) {
  // More tasks balance the load; smaller tiles would read the weight too often.
  constexpr int64_t least_rows = kForwardRows / 2;
  const int64_t threads = num_threads();
  const int64_t more = std::min(kThreadTasks * threads, pixels / least_rows / threads * threads);
  const int64_t tiles = std::max(ceil_div(pixels, kForwardRows * threads) * threads, more);
  return std::max<int64_t>(ceil_div(pixels, tiles), 1);
}

// Channels per block. If the input is copied in several passes: at most the channels that a pass may copy, in whole
// vectors (half panels).
template <typename T, typename S>
int64_t block_channels(const DeformConvShapes& s, bool one_pass) {
  const int64_t widest = kForwardBlockBytes / int64_t(sizeof(S)), lanes = forward_kernels<T, S>().panel / 2;
  const int64_t stageable = kStagingBytes / (s.in_pixels * int64_t(sizeof(S))) / lanes * lanes;
  return one_pass ? widest : std::clamp(stageable, lanes, widest);
}

template <typename T, typename S>
void compute_tiles(const DeformConvForwardParams<T, S>& p) {
  const DeformConvForward<T, S>& kernels = forward_kernels<T, S>();
  const int64_t bytes = kernels.tile_bytes(p), rows = p.tile.rows, pixels = p.images * p.shape.out_pixels;
  for_each_task(ceil_div(pixels, rows), [&](int64_t tile) {
    kernels.compute_tile(p, tile * rows, std::min(rows, pixels - tile * rows), thread_scratch<char>(bytes));
  });
}

// S is the type of input, packed weight and output; T is the type of the bias. Offset and mask are T or bfloat16.
template <typename T, typename S>
Tensor forward(const DeformConvShapes& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias) {
  const DeformConvForward<T, S>& kernels = forward_kernels<T, S>();
  const Map map = as_map(input);
  Tensor output = new_output(input, output_sizes(s), map.channels_last);
  if (output.numel() == 0) return output;

  // All channels in one pass if the output is narrower than the sums: between passes, it would round partial sums.
  const bool one_pass = map.channels_last || !std::is_same_v<S, T>;
  const int64_t most_channels = block_channels<T, S>(s, one_pass);
  ChannelBlocking blocking(s, choose_way(s, kernels.panel / 2), most_channels, kernels.panel);
  const int64_t columns = round_up(s.group_outputs(), kernels.panel);
  const int64_t packed_size =
      blocking.place_weights(sizeof(T) / sizeof(S), [&](const ChannelBlock&) { return columns; });
  const ScalarType type = std::is_same_v<S, T> ? accumulate_type(weight.scalar_type()) : weight.scalar_type();
  const Buffer<S> packed = pack_weight<S>(s, blocking, packed_size, as_type(weight, type), kernels.pack);

  DeformConvForwardParams<T, S> p{};
  p.shape = s, p.blocks.data = blocking.blocks.data();
  p.tile = blocking.tile(kForwardRows, &ChannelBlock::result_row);
  const MapLayout layout = blocking.input_layout(map.channels_last, false);
  p.weight = packed.data();
  p.bias = data_or_null<T>(bias);
  p.output.channels_last = map.channels_last;
  const StoredOffsetMask<T> offset_mask = stored_offset_mask<T>(offset, mask);
  const int64_t image_bytes = s.in_pixels * int64_t(sizeof(S)), image_size = s.channels * s.in_pixels;
  const int64_t chunk = images_at_a_time(s, s.channels * image_bytes);
  Buffer<S> staged;
  for (int64_t first = 0; first < s.batch; first += chunk) {
    const S* const images = data_of<S>(map.tensor) + first * image_size;
    p.images = std::min(chunk, s.batch - first);
    p.tile.rows = tile_rows(p.images * s.out_pixels);
    p.offset_mask = offset_mask.from_image(s, first);
    p.output.data = mutable_data_of<S>(output) + first * s.out_channels * s.out_pixels;
    for (p.blocks.end = 0; p.blocks.end < blocking.count();) {
      p.blocks.begin = p.blocks.end;
      p.blocks.end = one_pass ? blocking.count()
                              : blocking.end_of_pass(p.blocks.begin, p.images * image_bytes, kStagingBytes);
      p.input = lay_out_input(p, layout);
      p.input.data = images;
      if (layout != MapLayout::in_place) {
        S* const copies = at_least(p.images * p.input.image_size(s.in_pixels), staged);
        p.input.data = copies;
        each_stretch(p, map.channels_last, [&](const auto& pixels) { pixels.load(images, copies); });
      }
      compute_tiles(p);
    }
  }
  return output;
}

Tensor deform_conv_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                       std::optional<Tensor> mask, std::optional<Tensor> bias,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, int64_t groups,
                       std::optional<int64_t> im2col_step) {
  const DeformConvShapes s =
      check_deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step);
  check_map(s, input.scalar_type());
  const ScalarType type = accumulate_type(input.scalar_type());
  const auto readable_offset = as_readable(offset, type), readable_mask = as_readable(mask, type),
             wide_bias = contiguous_as(bias, type);
  if (input.scalar_type() == ScalarType::BFloat16 && multiplies_bfloat16(s))
    return forward<float, BFloat16Bits>(s, input, weight, readable_offset, readable_mask, wide_bias);
  const auto compute = type == ScalarType::Double ? forward<double, double> : forward<float, float>;
  const Tensor output = compute(s, as_type(input, type), weight, readable_offset, readable_mask, wide_bias);
  return as_type(output, input.scalar_type());
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) { m.impl("deform_conv", TORCH_BOX(&dcnzoo::deform_conv_cpu)); }
