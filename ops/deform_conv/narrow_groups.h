// Products of groups whose outputs would not fill a vector. The lanes are the columns of several groups instead, and each
// output of a group has its own vector of sums. Included by *_cpu_kernel.cpp only.
#pragma once

#include "columns.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {

// The channels of a group, as many as its outputs, if the block is multiplied this way, else 0.
template <typename T>
int64_t narrow_channels(const DeformConvShapes& s, const ChannelBlock& block) {
  const int64_t channels = s.channels / s.groups;
  const bool narrow = (channels == 4 || channels == 8) && 2 * channels <= kLanes<T>;
  return narrow && block.groups > 1 && s.out_channels == s.channels ? channels : 0;
}

template <typename S>
constexpr int64_t kColumns = kVectorBytes / sizeof(S);  // of a vector

// weight -> [vector of the block's columns][tap][output of a group][column]
template <typename S>
void pack_narrow(const DeformConvShapes& s, const ChannelBlock& block, const Piece& piece,
                 const WeightOf<const S>& weight, S* packed) {
  const int64_t channels = s.channels / s.groups, size = block.count * s.taps * channels;
  for (int64_t i = piece.begin_of(size); i < piece.end_of(size); ++i) {
    const int64_t row = i / kColumns<S>, o = row % channels, tap = row / channels % s.taps;
    const int64_t channel = block.first + row / channels / s.taps * kColumns<S> + i % kColumns<S>;
    packed[i] = weight.data[(channel / channels * channels + o) * channels * s.taps +
                            channel % channels * weight.channel_stride + tap * weight.tap_stride];
  }
}

// Returns x[I] + x[I ^ bit] in lane I, where x is a if I has the bit `bit` clear, else b.
template <int bit, typename V, int... I>
DCNZOO_INLINE V add_neighbours(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return shuffle<(I + (I & bit ? lanes : 0))...>(a, b) +
         shuffle<((I ^ bit) + (I & bit ? lanes : 0))...>(a, b);
}

// Sums the `width` lanes of every group. The sum in vector i becomes the group's lane i % width in vector i / width.
template <typename T, int width, int count, int bit = 1>
DCNZOO_INLINE void add_lanes(Vector<T>* sums) {
  if constexpr (bit < width) {
#pragma GCC unroll 4
    for (int i = 0; i < count / 2; ++i)
      sums[i] =
          add_neighbours<bit>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, kLanes<T>>());
    add_lanes<T, width, count / 2, 2 * bit>(sums);
  }
}

// Multiplies a vector of columns of each tap, tap_stride apart, by its part of the packed weight.
template <typename T, typename S, int channels>
void multiply_narrow(const S* columns, int64_t rows, int64_t taps, int64_t tap_stride, const S* weight,
                     T* result, int64_t result_stride) {
  constexpr int lanes = kLanes<T>, pair = sizeof(T) / sizeof(S), width = channels / pair;
  const auto read = [](const S* from) { return load(reinterpret_cast<const T*>(from)); };
  for (int64_t r = 0; r < rows; ++r) {
    Vector<T> sums[channels] = {};
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Vector<T> left = read(columns + r * kNR<S> + tap * tap_stride);
#pragma GCC unroll 8
      for (int o = 0; o < channels; ++o) {
        const Vector<T> right = read(weight + (tap * channels + o) * kColumns<S>);
        if constexpr (pair == 2)
          multiply_add_pairs(sums[o], left, right);
        else
          sums[o] += left * right;
      }
    }
    add_lanes<T, width, channels>(sums);
    T* to = result + r * result_stride;
    for (int i = 0; i < lanes / width; ++i)
      for (int j = 0; j < pair; ++j, to += width)
        __builtin_memcpy(to, reinterpret_cast<const T*>(sums + j) + i * width, width * sizeof(T));
  }
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
