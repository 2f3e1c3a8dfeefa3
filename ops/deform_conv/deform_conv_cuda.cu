// deform_conv on CUDA: im2col at the sampling points, then a matrix product by torch.
//
// A chunk of im2col_step images is lowered at a time to columns [channels · taps][images · pixels].
// Half types are not converted in memory; their coordinates, interpolation weights and sums are float.
#include <numeric>
#include <tuple>

#include "../common/atomics.cuh"
#include "../common/corners.h"
#include "../common/dispatch.cuh"
#include "../common/integers.h"
#include "../common/lane_sums.cuh"
#include "../common/memory_format.h"
#include "deform_conv_checks.h"

namespace dcnzoo {
namespace {

// A block computes neighbouring positions of a row of columns: output pixels, one image after the other.
constexpr int kLargeThreads = 512, kColumnThreads = 256, kGradientThreads = 128;
// Rows are padded with zeros to 16 bytes of a half type, so that matrix products read whole vectors.
constexpr int64_t kRowMultiple = 8;
// Positions, and pixels of a map, are 32-bit numbers. The difference of 1024 is for threads beyond the end of a row.
constexpr int64_t kMostPixels = (int64_t(1) << 31) - 1024;
// Without im2col_step, the columns of a chunk take at most kMostColumnBytes. A chunk is large if it has at least
// kLargePositions positions, and kLargeValues values for each tap (positions · channels). The emulation uses smaller limits,
// so that small tests have several chunks, and some of these count as large.
#ifdef __CUDACC__
constexpr int64_t kMostColumnBytes = int64_t(256) << 20, kLargePositions = 1 << 14, kLargeValues = 1 << 21;
#else
constexpr int64_t kMostColumnBytes = 4096, kLargePositions = 32, kLargeValues = 256;
#endif

// The work of a thread: a position of a row, one kernel tap, and one part of the channels.
struct Place {
  int position, image, pixel, tap;
  int64_t part;
};

// Divides channels that share sampling points into pieces: a thread computes the points once per piece.
struct ChannelPieces {
  int64_t block = 1;           // channels of one offset group and one mask group
  int64_t most = 1;            // channels of a piece
  int64_t count = 1;           // pieces of all channels
  Divisor<int64_t> per_block;  // pieces

  ChannelPieces() = default;
  ChannelPieces(int64_t channels, int64_t block, int64_t most)
      : block(block),
        most(most),
        count(channels / block * ceil_div(block, most)),
        per_block(ceil_div(block, most)) {}

  __device__ int64_t begin(int64_t piece, int& channels) const {
    int64_t of_block = piece;
    const int64_t first = per_block.split(of_block) * most;
    channels = int(min(most, block - first));
    return of_block * block + first;
  }
};

// The sampling points of a chunk of images, and a kernel's division of the work among blocks.
template <typename A, typename F, int Rank>
struct Sampling {
  ConvGeometry<Rank> geometry;
  int64_t channels, taps, in_pixels, out_pixels, positions, row;  // row: positions and padding
  int64_t offset_groups, mask_groups;
  const F* offset;  // [images][offset_groups · taps · Rank][out_pixels], or null
  const F* mask;    // [images][mask_groups · taps][out_pixels], or null
  ChannelPieces pieces;
  Divisor<int64_t> offset_channels, mask_channels;  // of a group
  Divisor<int> pixels, out[Rank], kernel[Rank];
  int64_t tiles;
  int taps_of_tile;
  Divisor<int64_t> tiles_of_row, tiles_of_tap;

  // Divides the work among blocks. A block computes `width` positions, one of `parts` parts of the channels, and one tap or
  // all taps.
  Sampling in_tiles(int64_t width, int64_t parts, bool all_taps = false) const {
    Sampling result = *this;
    result.taps_of_tile = all_taps ? int(taps) : 1;
    result.tiles_of_row = ceil_div(row, width), result.tiles_of_tap = taps / result.taps_of_tile;
    result.tiles = ceil_div(row, width) * (taps / result.taps_of_tile) * parts;
    return result;
  }

  __device__ Place place(int64_t tile) const {
    Place at;
    at.position = int(tiles_of_row.split(tile)) * int(blockDim.x) + int(threadIdx.x);
    at.tap = int(tiles_of_tap.split(tile));
    at.part = tile;
    at.image = at.position;
    at.pixel = pixels.split(at.image);
    return at;
  }

  // The index of a position in columns [channel][tap][position].
  __device__ int64_t column(int64_t channel, const Place& at) const {
    return (channel * taps + at.tap) * row + at.position;
  }
  __device__ int64_t map(int64_t channel, const Place& at) const {
    return (at.image * channels + channel) * in_pixels;
  }

  __device__ Corners<A, int, Rank> corners(const Place& at, int64_t channel) const {
    A point[Rank], extent[Rank];
    int size[Rank], tap = at.tap, pixel = at.pixel;
#pragma unroll
    for (int axis = Rank - 1; axis >= 0; --axis) {
      const int64_t step = axis == 0 ? tap : kernel[axis].split(tap);
      const int64_t place = axis == 0 ? pixel : out[axis].split(pixel);
      point[axis] =
          A(place * geometry.stride[axis] - geometry.padding[axis] + step * geometry.dilation[axis]);
      size[axis] = int(geometry.in[axis]);
      extent[axis] = A(size[axis]);
    }
    if (offset) {
      const int64_t group = offset_channels.quotient(channel);
      const F* from = offset + ((at.image * offset_groups + group) * taps + at.tap) * Rank * out_pixels;
#pragma unroll
      for (int axis = 0; axis < Rank; ++axis) point[axis] += A(from[axis * out_pixels + at.pixel]);
    }
    return corners_at<A, int, Rank>(point, extent, size);
  }

  __device__ A factor(const Place& at, int64_t channel) const {
    if (!mask) return A(1);
    const int64_t group = mask_channels.quotient(channel);
    return A(mask[((at.image * mask_groups + group) * taps + at.tap) * out_pixels + at.pixel]);
  }
};

template <typename T, typename A, typename F, int Rank>
__device__ void write_columns(const Sampling<A, F, Rank>& s, const Place& at, const T* __restrict__ input,
                              T* __restrict__ columns) {
  constexpr int corner_count = 1 << Rank;
  int channels;
  const int64_t begin = s.pieces.begin(at.part, channels), step = s.taps * s.row;
  T* column = columns + s.column(begin, at);
  if (at.position >= s.positions) {  // padding
#pragma unroll 1
    for (; channels > 0; --channels, column += step) *column = T(A(0));
    return;
  }
  const Corners<A, int, Rank> corners = s.corners(at, begin);
  const A factor = s.factor(at, begin);
  A weight[corner_count];
#pragma unroll
  for (int corner = 0; corner < corner_count; ++corner)
    weight[corner] = corner_weight<A, Rank>(corner, corners.fraction);
  const T* pixel[corner_count];  // of the current channel
#pragma unroll
  for (int corner = 0; corner < corner_count; ++corner)
    pixel[corner] = input + s.map(begin, at) + corners.index[corner];
#pragma unroll 4
  for (int channel = 0; channel < channels; ++channel, column += step) {
    A sum = A(0);
#pragma unroll
    for (int corner = 0; corner < corner_count; ++corner, pixel[corner - 1] += s.in_pixels)
      if (corners.valid[corner] != A(0)) sum += weight[corner] * A(*pixel[corner]);
    *column = T(sum * factor);
  }
}

template <typename T, typename A, typename F, int Rank>
__global__ void __launch_bounds__(kLargeThreads)
    im2col_kernel(Sampling<A, F, Rank> s, const T* __restrict__ input, T* __restrict__ columns) {
  for (int64_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    Place at = s.place(tile);
    if (at.position >= s.row) continue;
#pragma unroll 1
    for (int tap = 0; tap < s.taps_of_tile; ++tap, ++at.tap) write_columns(s, at, input, columns);
  }
}

// The adjoint of im2col_kernel with respect to the input. Adds V channels at a time; with more than one, grad_input is
// channels last.
template <typename T, typename A, typename F, int Rank, int V>
__global__ void col2im_kernel(Sampling<A, F, Rank> s, const T* __restrict__ grad_columns,
                              A* __restrict__ grad_input) {
  constexpr int corner_count = 1 << Rank;
  const int64_t pixel_stride = V > 1 ? s.channels : 1, channel_stride = V > 1 ? 1 : s.in_pixels;
  for (int64_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    const Place at = s.place(tile);
    if (at.position >= s.positions) continue;
    int channels;
    const int64_t begin = s.pieces.begin(at.part, channels), step = s.taps * s.row;
    const Corners<A, int, Rank> corners = s.corners(at, begin);
    if (!corners.inside) continue;
    const A factor = s.factor(at, begin);
    A weight[corner_count];
#pragma unroll
    for (int corner = 0; corner < corner_count; ++corner)
      weight[corner] = corner_weight<A, Rank>(corner, corners.fraction) * factor;
    const T* column = grad_columns + s.column(begin, at);
    A* map = grad_input + s.map(0, at) + begin * channel_stride;
#pragma unroll 4
    for (int channel = 0; channel < channels; channel += V, map += V * channel_stride, column += V * step) {
      A gradient[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gradient[v] = A(column[v * step]);
      // Atomics: neighbouring taps and pixels read the same input.
#pragma unroll
      for (int corner = 0; corner < corner_count; ++corner) {
        if (corners.valid[corner] == A(0)) continue;
        A shares[V];
#pragma unroll
        for (int v = 0; v < V; ++v) shares[v] = weight[corner] * gradient[v];
        atomic_add(map + corners.index[corner] * pixel_stride, shares);
      }
    }
  }
}

// Gradients of offset and mask: one value per tap, pixel and group of channels (`owners` groups of `owned` channels). A
// column of threads sums over the channels of a group in a fixed order.
template <typename T, typename A, typename F, int Rank>
__global__ void grad_offset_mask_kernel(Sampling<A, F, Rank> s, int64_t owners, int64_t owned,
                                        const T* __restrict__ input, const T* __restrict__ grad_columns,
                                        F* __restrict__ grad_offset, F* __restrict__ grad_mask) {
  constexpr int corner_count = 1 << Rank;
  for (int64_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    const Place at = s.place(tile);
    const bool counts = at.position < s.positions;
    A sum[Rank + 1] = {};  // the offset's, one per axis, then the mask's
    const int64_t end = counts ? (at.part + 1) * owned : 0;
    for (int64_t begin = at.part * owned; begin < end; begin += s.pieces.block) {
      const Corners<A, int, Rank> corners = s.corners(at, begin);
      const A factor = s.factor(at, begin);
      const T* map = input + s.map(begin + threadIdx.y, at);
      const T* column = grad_columns + s.column(begin + threadIdx.y, at);
#pragma unroll 2
      for (int64_t channel = threadIdx.y; channel < s.pieces.block;
           channel += kSumLanes, map += kSumLanes * s.in_pixels, column += kSumLanes * s.taps * s.row) {
        A value[Rank + 1] = {};
#pragma unroll
        for (int corner = 0; corner < corner_count; ++corner) {
          if (corners.valid[corner] == A(0)) continue;
          const A pixel = A(map[corners.index[corner]]);
#pragma unroll
          for (int axis = 0; axis < Rank; ++axis)
            value[axis] += corner_slope<A, Rank>(corner, axis, corners.fraction) * pixel;
          value[Rank] += corner_weight<A, Rank>(corner, corners.fraction) * pixel;
        }
        const A gradient = A(*column);
        if (corners.inside) {  // outside the map, the offset has no effect
#pragma unroll
          for (int axis = 0; axis < Rank; ++axis) sum[axis] += gradient * factor * value[axis];
        }
        sum[Rank] += gradient * value[Rank];
      }
    }
    sum_over_lanes(sum, counts, [&](int i, A total) {
      const int64_t field = (at.image * owners + at.part) * s.taps + at.tap;
      if (i < Rank && grad_offset) grad_offset[(field * Rank + i) * s.out_pixels + at.pixel] = F(total);
      if (i == Rank && grad_mask) grad_mask[field * s.out_pixels + at.pixel] = F(total);
    });
  }
}

// Copies a chunk's matrix product to the output and adds the bias. Neighbouring threads read and write neighbouring values:
//   product [channels][row]                    -> output [images][channels][pixels]
//   product [groups][row][channels of a group] -> output [images · pixels][channels], for channels last
// A line is [images · pixels] of a channel or, for channels last, [channels] of a pixel.
struct OutputLines {
  int64_t lines, row, length;             // length: of an image or of a group, in a line
  Divisor<int64_t> by_values, by_length;  // values: in a line
  bool channels_last;
};

template <typename T, typename A>
__global__ void store_output_kernel(OutputLines s, int64_t count, const T* __restrict__ product,
                                    const T* __restrict__ bias, T* __restrict__ output) {
  DCNZOO_FOR_EACH(index, count) {
    int64_t line = index;
    const int64_t place = s.by_values.split(line);
    int64_t part = place;
    const int64_t inside = s.by_length.split(part);
    const int64_t apart = (part * (s.channels_last ? s.row : s.lines) + line) * s.length + inside;
    const A value = A(product[s.channels_last ? apart : line * s.row + place]);
    output[s.channels_last ? index : apart] =
        T(bias ? value + A(bias[s.channels_last ? place : line]) : value);
  }
}

template <typename A>
__global__ void accumulate_kernel(int64_t count, const A* __restrict__ values, A* __restrict__ sums) {
  DCNZOO_FOR_EACH(index, count) sums[index] += values[index];
}

// out = a · b, batched. Autocast does not change the out variant.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  call_operator<1>("aten::bmm", "out", a, b, out);
}

// sums += a · b, batched. Products of half types are not rounded before the addition: cuBLAS writes float.
template <typename A>
void multiply_and_add(const Tensor& a, const Tensor& b, const Tensor& sums) {
  const Tensor product = torch::stable::new_empty(sums, sizes_of(sums));
  if (a.scalar_type() == sums.scalar_type()) {
    multiply(a, b, product);
  } else if (!a.is_cuda()) {  // tests without a GPU
    const auto wide = [&](const Tensor& matrices) { return torch::stable::to(matrices, sums.scalar_type()); };
    multiply(wide(a), wide(b), product);
  } else {
    call_operator<1>("aten::bmm", "dtype_out", a, b, sums.scalar_type(), product);
  }
  launch("accumulate_kernel", accumulate_kernel<A>, blocks_for(product.numel()), kThreads, product,
         product.numel(), data_of<A>(product), mutable_data_of<A>(sums));
}

Tensor transposed(const Tensor& matrices) { return torch::stable::transpose(matrices, 1, 2); }

// Images [first, first + count) of a tensor, contiguous and as `type`, without a copy if possible.
Tensor images_of(Tensor tensor, int64_t first, int64_t count, ScalarType type) {
  return contiguous_as(torch::stable::narrow(tensor, 0, first, count), type);
}

int64_t channels_of_group(const DeformConvShapes& s, int64_t groups) {
  return groups ? s.channels / groups : s.channels;
}

// Channels that share an offset group and a mask group.
int64_t shared_channels(const DeformConvShapes& s) {
  return std::gcd(channels_of_group(s, s.offset_groups), channels_of_group(s, s.mask_groups));
}

// Channels of a gradient of type A that GPUs from sm_90 on add at a time.
template <typename A>
constexpr int kVector = std::is_same_v<A, float> ? 4 : 1;

// A chunk of images, contiguous. F: the type of its offset and mask.
template <typename T, typename F, int Rank>
struct Chunk {
  using A = Accumulate<T>;
  int64_t images, positions, row;
  Tensor input;
  std::optional<Tensor> offset, mask;
  Sampling<A, F, Rank> sampling{};

  Chunk(const DeformConvShapes& s, int64_t first, const Tensor& input, const std::optional<Tensor>& offset,
        const std::optional<Tensor>& mask, ScalarType field_type)
      : images(std::min(s.im2col_step, s.batch - first)),
        positions(images * s.out_pixels),
        row(round_up(positions, kRowMultiple)),
        input(images_of(input, first, images, input.scalar_type())) {
    if (offset) this->offset = images_of(*offset, first, images, field_type);
    if (mask) this->mask = images_of(*mask, first, images, field_type);
    sampling.geometry = s.geometry<Rank>();
    sampling.channels = s.channels, sampling.taps = s.taps;
    sampling.in_pixels = s.in_pixels, sampling.out_pixels = s.out_pixels;
    sampling.positions = positions, sampling.row = row;
    sampling.offset_groups = s.offset_groups, sampling.mask_groups = s.mask_groups;
    sampling.offset = offset ? data_of<F>(*this->offset) : nullptr;
    sampling.mask = mask ? data_of<F>(*this->mask) : nullptr;
    sampling.offset_channels = channels_of_group(s, s.offset_groups);
    sampling.mask_channels = channels_of_group(s, s.mask_groups);
    sampling.pixels = int(s.out_pixels);
    for (int axis = 0; axis < Rank; ++axis)
      sampling.out[axis] = int(s.out[axis]), sampling.kernel[axis] = int(s.kernel[axis]);
    sampling.pieces = ChannelPieces(s.channels, shared_channels(s), 16);
  }

  Tensor new_columns(const DeformConvShapes& s) const {
    return torch::stable::new_empty(input, {s.groups, s.channels / s.groups * s.taps, row});
  }

  // In large chunks, a block computes all taps, so that it reads most pixels from L1. On an H100 this takes .72 to 1.01 of
  // the time of one block per tap. In small chunks it takes longer, because there are too few blocks.
  void im2col(const Tensor& columns) const {
    const bool large = positions >= kLargePositions && positions * sampling.channels >= kLargeValues;
    const int threads = large ? kLargeThreads : kColumnThreads;
    auto divided = sampling;
    if (large) divided.pieces = ChannelPieces(sampling.channels, sampling.pieces.block, 8);
    const auto tiled = divided.in_tiles(threads, divided.pieces.count, large);
    launch("im2col_kernel", im2col_kernel<T, A, F, Rank>, blocks_for_tiles(tiled.tiles), threads, input,
           tiled, data_of<T>(input), mutable_data_of<T>(columns));
  }

  void col2im(const Tensor& grad_columns, A* grad_input, bool vectors) const {
    const auto tiled = sampling.in_tiles(kGradientThreads, sampling.pieces.count);
    launch(
        "col2im_kernel", vectors ? col2im_kernel<T, A, F, Rank, kVector<A>> : col2im_kernel<T, A, F, Rank, 1>,
        blocks_for_tiles(tiled.tiles), kGradientThreads, input, tiled, data_of<T>(grad_columns), grad_input);
  }

  void grad_offset_mask(int64_t owners, const Tensor& grad_columns, F* grad_offset, F* grad_mask) const {
    const auto tiled = sampling.in_tiles(kSumColumns, owners);
    launch("grad_offset_mask_kernel", grad_offset_mask_kernel<T, A, F, Rank>, blocks_for_tiles(tiled.tiles),
           dim3(kSumColumns, kSumLanes), input, tiled, owners, tiled.channels / owners, data_of<T>(input),
           data_of<T>(grad_columns), grad_offset, grad_mask);
  }
};

Tensor weight_matrices(const DeformConvShapes& s, const Tensor& weight) {
  return torch::stable::view(torch::stable::contiguous(weight),
                             {s.groups, s.out_channels / s.groups, s.channels / s.groups * s.taps});
}

template <typename T, typename F, int Rank>
Tensor forward(const DeformConvShapes& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::optional<Tensor>& bias_any, ScalarType field_type) {
  const bool channels_last = wants_channels_last(input);
  const Tensor output = new_output(input, output_sizes(s), channels_last);
  if (output.numel() == 0) return output;
  const Tensor matrices = weight_matrices(s, weight);
  const int64_t outputs = s.out_channels / s.groups;
  std::optional<Tensor> bias;
  if (bias_any) bias = torch::stable::contiguous(*bias_any);
  for (int64_t first = 0; first < s.batch; first += s.im2col_step) {
    const Chunk<T, F, Rank> chunk(s, first, input, offset, mask, field_type);
    const Tensor columns = chunk.new_columns(s);
    chunk.im2col(columns);
    const Tensor product = channels_last ? torch::stable::new_empty(input, {s.groups, chunk.row, outputs})
                                         : torch::stable::new_empty(input, {s.groups, outputs, chunk.row});
    channels_last ? multiply(transposed(columns), transposed(matrices), product)
                  : multiply(matrices, columns, product);
    const OutputLines lines =
        channels_last
            ? OutputLines{chunk.positions, chunk.row, outputs, s.out_channels, outputs, true}
            : OutputLines{s.out_channels, chunk.row, s.out_pixels, chunk.positions, s.out_pixels, false};
    const int64_t count = chunk.positions * s.out_channels;
    launch("store_output_kernel", store_output_kernel<T, Accumulate<T>>, blocks_for(count), kThreads, product,
           lines, count, data_of<T>(product), bias ? data_of<T>(*bias) : nullptr,
           mutable_data_of<T>(output) + first * s.out_channels * s.out_pixels);
  }
  return output;
}

template <typename T, typename F, int Rank>
DeformConvGradients backward(const DeformConvShapes& s, const Tensor& grad_output, const Tensor& input,
                             const Tensor& weight, const std::optional<Tensor>& offset,
                             const std::optional<Tensor>& mask, const std::vector<bool>& wanted,
                             ScalarType field_type) {
  using A = Accumulate<T>;
  const ScalarType wide = accumulate_type(input.scalar_type());
  // Sums of several chunks or threads in the accumulation type: half gradients are rounded only once.
  const bool vectors =
      wanted[0] && kVector<A> > 1 && shared_channels(s) % kVector<A> == 0 && adds_vectors(input);
  Tensor sums_of_input =
      vectors ? new_channels_last(input, sizes_of(input), wide) : new_gradient(input, wanted[0], input, wide);
  if (vectors) torch::stable::zero_(sums_of_input);
  const DeformConvGradients sums{sums_of_input, new_gradient(input, wanted[1], weight, wide),
                                 new_gradient(input, wanted[2], offset, field_type),
                                 new_gradient(input, wanted[3], mask, field_type)};
  if (grad_output.numel() == 0) return sums;

  const Tensor matrices = weight_matrices(s, weight);
  const int64_t outputs = s.out_channels / s.groups;
  for (int64_t first = 0; first < s.batch; first += s.im2col_step) {
    const Chunk<T, F, Rank> chunk(s, first, input, offset, mask, field_type);
    Tensor grad_chunk = grad_output;
    grad_chunk = torch::stable::narrow(grad_chunk, 0, first, chunk.images);
    grad_chunk = torch::stable::contiguous(torch::stable::transpose(grad_chunk, 0, 1));
    grad_chunk = torch::stable::view(grad_chunk, {s.groups, outputs, chunk.positions});
    if (const int64_t padding = chunk.row - chunk.positions; padding > 0)
      grad_chunk = torch::stable::pad(grad_chunk, std::vector<int64_t>{0, padding});
    const Tensor columns = chunk.new_columns(s);

    if (wanted[1]) {
      chunk.im2col(columns);
      multiply_and_add<A>(grad_chunk, transposed(columns),
                          torch::stable::view(sums.weight, sizes_of(matrices)));
    }
    if (!wanted[0] && !wanted[2] && !wanted[3]) continue;
    multiply(transposed(matrices), grad_chunk, columns);  // replaces the columns by their gradient
    if (wanted[0])
      chunk.col2im(columns, mutable_data_of<A>(sums.input) + first * s.channels * s.in_pixels, vectors);
    const int64_t points = first * s.taps * s.out_pixels;
    F* grad_offset = wanted[2] ? mutable_data_of<F>(sums.offset) + points * s.offset_groups * Rank : nullptr;
    F* grad_mask = wanted[3] ? mutable_data_of<F>(sums.mask) + points * s.mask_groups : nullptr;
    if (grad_offset && grad_mask && s.offset_groups == s.mask_groups) {
      chunk.grad_offset_mask(s.offset_groups, columns, grad_offset, grad_mask);
      continue;
    }
    if (grad_offset) chunk.grad_offset_mask(s.offset_groups, columns, grad_offset, nullptr);
    if (grad_mask) chunk.grad_offset_mask(s.mask_groups, columns, nullptr, grad_mask);
  }
  return sums;
}

// Checks the maps' sizes and shrinks the chunks, if necessary, to fit the kernels' 32-bit numbers and, if the caller did
// not choose im2col_step, kMostColumnBytes. A chunk has at least one image.
void fit_chunks(DeformConvShapes& s, ScalarType type, bool step_is_chosen) {
  for (const auto& [name, pixels] :
       {std::pair<const char*, int64_t>{"input", s.in_pixels}, {"output", s.out_pixels}})
    check(pixels <= kMostPixels, "deform_conv", s.rank, "d: ", name, ": expected at most ", kMostPixels,
          " pixels per image on CUDA, got ", pixels);
  int64_t most = kMostPixels / s.out_pixels;
  if (!step_is_chosen) {
    const int64_t bytes = is_half(type) ? 2 : type == ScalarType::Double ? 8 : 4;
    const int64_t image = s.channels * s.taps * s.out_pixels * bytes;
    most = std::min(most, kMostColumnBytes / std::max<int64_t>(1, image));
  }
  s.im2col_step = std::min(s.im2col_step, std::max<int64_t>(1, most));
}

Tensor deform_conv_cuda(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                        std::optional<Tensor> mask, std::optional<Tensor> bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups,
                        std::optional<int64_t> im2col_step) {
  DeformConvShapes s =
      check_deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, im2col_step);
  fit_chunks(s, input.scalar_type(), im2col_step.has_value());
  const ScalarType fields = field_type(input, {offset ? &*offset : nullptr, mask ? &*mask : nullptr});
  return dispatch_types(input.scalar_type(), fields, [&](auto map, auto field) {
    return dispatch_rank(s.rank, [&](auto rank) {
      return forward<decltype(map), decltype(field), decltype(rank)::value>(s, input, weight, offset, mask,
                                                                            bias, fields);
    });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv_backward_cuda(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
    std::optional<Tensor> mask, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step,
    const std::vector<bool>& output_mask) {
  DeformConvShapes s = check_deform_conv(input, weight, offset, mask, std::nullopt, stride, padding, dilation,
                                         groups, im2col_step, grad_output);
  check_output_mask(s, input, offset, mask, output_mask);
  fit_chunks(s, input.scalar_type(), im2col_step.has_value());
  const ScalarType fields = field_type(input, {offset ? &*offset : nullptr, mask ? &*mask : nullptr});
  const DeformConvGradients sums = dispatch_types(input.scalar_type(), fields, [&](auto map, auto field) {
    return dispatch_rank(s.rank, [&](auto rank) {
      return backward<decltype(map), decltype(field), decltype(rank)::value>(
          s, grad_output, input, weight, offset, mask, output_mask, fields);
    });
  });
  Tensor grad_input;
  if (output_mask[0] && wants_channels_last(input)) {
    grad_input = new_channels_last(input, sizes_of(input));
    torch::stable::copy_(grad_input, sums.input);
  } else {
    grad_input = torch::stable::contiguous(to_type_of(input, sums.input));
  }
  Tensor grad_bias = torch::stable::new_empty(input, {0});
  if (output_mask[4]) {
    std::vector<int64_t> axes{0};
    for (int64_t axis = 2; axis < input.dim(); ++axis) axes.push_back(axis);
    grad_bias = torch::stable::sum(grad_output, axes, false);
  }
  return {grad_input, to_type_of(weight, sums.weight), to_type_of(offset, sums.offset),
          to_type_of(mask, sums.mask), grad_bias};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_conv", TORCH_BOX(&dcnzoo::deform_conv_cuda));
  m.impl("_deform_conv_backward", TORCH_BOX(&dcnzoo::deform_conv_backward_cuda));
}
