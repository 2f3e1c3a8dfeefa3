// Helpers that the forward and the backward of deform_conv share on the CPU, in the part that uses torch.
#pragma once

#include "../common/memory_format.h"
#include "../common/parallel.h"
#include "channel_blocks.h"
#include "deform_conv_checks.h"

namespace dcnzoo {

template <typename T, typename S>
const DeformConvForward<T, S>& forward_kernels() {
  return deform_conv_forward_kernels_dispatched().of<T, S>();
}

template <typename T, typename S>
const DeformConvBackward<T, S>& backward_kernels() {
  return deform_conv_backward_kernels_dispatched().of<T, S>();
}

// Whether to compute bfloat16 as it is stored, not as float. Samples over pixels have no kernels for it.
inline bool multiplies_bfloat16(const DeformConvShapes& s) {
  const auto& kernels = forward_kernels<float, BFloat16Bits>();
  return kernels.compute_tile && kernels.suits(s.channels) && !samples_over_pixels(s);
}

// A map without gaps in memory, channels last or channels first: the caller's or, if that has gaps, a copy. Whether the
// kernels read it in place is another question: ChannelBlocking::input_layout.
struct Map {
  Tensor tensor;
  bool channels_last;
};

inline Map as_map(const Tensor& tensor) {
  if (tensor.is_contiguous()) return {tensor, false};
  if (wants_channels_last(tensor)) return {tensor, true};
  return {torch::stable::contiguous(tensor), false};
}

inline std::optional<Tensor> contiguous_as(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return contiguous_as(*tensor, type);
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

// At most kStretch pixels of a block of an image, from pixel `first` on, which are copied between the maps of all
// channels and copies in the layout of p.input.
template <typename T, typename S>
struct StagedPixels {
  const DeformConvParams<T, S>& p;
  const ChannelBlock& block;
  bool channels_last;  // the maps of all channels
  int64_t image, first;

  int64_t count() const { return std::min(kStretch, p.shape.in_pixels - first); }
  int64_t stride() const { return channels_last ? p.shape.channels : p.shape.in_pixels; }
  int64_t map_at() const {
    return image * p.shape.channels * p.shape.in_pixels +
           (channels_last ? first * p.shape.channels + block.first : block.first * p.shape.in_pixels + first);
  }
  bool has_planes() const { return p.input.layout == MapLayout::planes; }
  int64_t block_at() const {
    return p.input.place_of(block, p.shape.in_pixels) + image * p.input.image_size(p.shape.in_pixels);
  }
  int64_t copy_at() const { return block_at() + first * p.input.pixel_stride(block); }

  void load(const S* maps, S* copies) const {
    const DeformConvForward<T, S>& kernels = forward_kernels<T, S>();
    maps += map_at(), copies += copy_at();
    if (!has_planes())
      return kernels.to_lanes(block.input_lanes(), maps, stride(), channels_last, copies, block.stored,
                              block.stored, count());
    if (channels_last)
      return kernels.transpose(maps, stride(), copies, p.shape.in_pixels, count(), block.count);
    for (int64_t channel = 0; channel < block.count; ++channel)
      std::copy_n(maps + channel * p.shape.in_pixels, count(), copies + channel * p.shape.in_pixels);
  }

  // The reverse
  void store(const T* copies, S* maps) const {
    maps += map_at(), copies += copy_at();
    if (!has_planes())
      return backward_kernels<T, S>().from_lanes(block.input_lanes(), copies, block.stored, block.stored,
                                                 maps, stride(), channels_last, count());
    if constexpr (std::is_same_v<T, S>) {
      if (channels_last)
        return forward_kernels<T, S>().transpose(copies, p.shape.in_pixels, maps, stride(), block.count,
                                                 count());
      for (int64_t channel = 0; channel < block.count; ++channel)
        std::copy_n(copies + channel * p.shape.in_pixels, count(), maps + channel * p.shape.in_pixels);
    }
  }

  // Sets as many elements of the copies to zero, in any layout.
  void clear(T* copies) const {
    std::fill_n(copies + block_at() + first * block.stored, count() * block.stored, T(0));
  }
};

// The input of p's blocks, without its data. In place, all of the map.
template <typename T, typename S>
InputMaps<S> lay_out_input(const DeformConvParams<T, S>& p, MapLayout layout) {
  if (layout == MapLayout::in_place) return {nullptr, layout, 0, p.shape.channels};
  const ChannelBlock &begin = p.blocks.data[p.blocks.begin], &last = p.blocks.data[p.blocks.end - 1];
  return {nullptr, layout, begin.stored_at, last.stored_at + last.stored - begin.stored_at};
}

// Calls function(pixels) with StagedPixels for all pixels of p's images and blocks.
template <typename T, typename S, typename Function>
void each_stretch(const DeformConvParams<T, S>& p, bool channels_last, const Function& function) {
  const int64_t stretches = ceil_div(p.shape.in_pixels, kStretch), blocks = p.blocks.end - p.blocks.begin;
  for_each_task(p.images * blocks * stretches, [&](int64_t i) {
    const ChannelBlock& block = p.blocks.data[p.blocks.begin + i / stretches % blocks];
    function(StagedPixels<T, S>{p, block, channels_last, i / stretches / blocks, i % stretches * kStretch});
  });
}

// The buffer's memory, which is allocated again if it is too small.
template <typename E>
E* at_least(int64_t size, Buffer<E>& buffer) {
  if (buffer.size() < size) buffer = Buffer<E>(size);
  return buffer.data();
}

// Offset or mask, contiguous, in a type that the kernels of `type` read: those of float convert bfloat16 themselves.
inline std::optional<Tensor> as_readable(const std::optional<Tensor>& tensor, ScalarType type) {
  const bool converts = type == ScalarType::Float && tensor && tensor->scalar_type() == ScalarType::BFloat16;
  return contiguous_as(tensor, converts ? ScalarType::BFloat16 : type);
}

template <typename T>
StoredOffsetMask<T> stored_offset_mask(const std::optional<Tensor>& offset,
                                       const std::optional<Tensor>& mask) {
  StoredOffsetMask<T> stored{};
  const auto set = [](const std::optional<Tensor>& tensor, const T*& values, const BFloat16Bits*& bits) {
    if (tensor && tensor->scalar_type() == ScalarType::BFloat16)
      bits = data_or_null<BFloat16Bits>(tensor);
    else
      values = data_or_null<T>(tensor);
  };
  set(offset, stored.values.offset, stored.bits.offset);
  set(mask, stored.values.mask, stored.bits.mask);
  return stored;
}

// Calls function(block, piece) for every piece of the blocks' weights.
template <typename Function>
void each_piece(const ChannelBlocking& blocking, const Function& function) {
  constexpr int64_t pieces = 16;  // more blocks times pieces than threads, for most shapes
  for_each_task(blocking.count() * pieces,
                [&](int64_t i) { function(blocking.blocks[i / pieces], Piece{i % pieces, pieces}); });
}

template <typename S>
WeightOf<S> weight_of(const DeformConvShapes& s, S* data, bool channels_last) {
  const int64_t channels = s.group_channels();
  return {data, channels * s.taps, channels_last ? 1 : s.taps, channels_last ? channels : 1};
}

template <typename S, typename Pack>
Buffer<S> pack_weight(const DeformConvShapes& s, const ChannelBlocking& blocking, int64_t size,
                      const Tensor& weight, Pack pack) {
  Buffer<S> packed(size);
  const Map map = as_map(weight);
  const auto from = weight_of(s, data_of<S>(map.tensor), map.channels_last);
  each_piece(blocking, [&](const ChannelBlock& block, const Piece& piece) {
    pack(s, block, piece, from, packed.data());
  });
  return packed;
}

// Except for float64, the kernels index the pixels of a map with 32 bits.
inline void check_map(const DeformConvShapes& s, ScalarType type) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  check(s.in_pixels <= most || type == ScalarType::Double, "deform_conv", s.rank,
        "d: input: expected at most ", most, " pixels on the CPU (float64: any number), got ", s.in_pixels);
}

}  // namespace dcnzoo
