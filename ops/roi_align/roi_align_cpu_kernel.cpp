#include <type_traits>

#include "../common/integers.h"
#include "../common/simd.h"
#include "roi_align_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

// An average is a sum over y, then over x. A block of channels is [column or bin][Vectors][kLanes], so that both sums
// read and write whole vectors.
template <typename T>
using Range = typename RoiShareTable<T>::Range;

// row[x] = Σ weight · maps[pixel of the share][x]. maps: [pixels][map_channels], from the first column on.
template <int Vectors, typename T, typename S>
void sum_pixels(const RoiAverage<T>& roi, const Range<T>& shares, const S* maps, int64_t map_channels) {
  constexpr int lanes = kLanes<T>;
  T* row = roi.row;
  for (int64_t x = roi.first; x <= roi.last; ++x, maps += map_channels, row += Vectors * lanes) {
    Vector<T> sum[Vectors] = {};
    for (const RoiShare<T>& share : shares) {
      const S* const pixel = maps + share.pixel * roi.width * map_channels;
      for (int v = 0; v < Vectors; ++v) sum[v] += share.weight * load_lanes<Vector<T>>(pixel + v * lanes);
    }
    for (int v = 0; v < Vectors; ++v) store(row + v * lanes, sum[v]);
  }
}

// The number of columns that are read, rounded up to whole vectors.
template <typename T>
int64_t padded_columns(const RoiAverage<T>& roi) {
  return round_up(roi.last + 1 - roi.first, kLanes<T>);
}

// The same for maps [channels][pixels], which are summed along x and then transposed.
template <typename T, typename S>
void sum_channels(const RoiAverage<T>& roi, const Range<T>& shares, const S* maps, int64_t channels) {
  const int64_t columns = roi.last + 1 - roi.first, padded = padded_columns(roi);
  T* const turned = roi.row + padded * kLanes<T>;
  for (int64_t channel = 0; channel < channels; ++channel, maps += roi.pixels)
    for (int64_t x = 0; x < padded; x += kLanes<T>) {
      Vector<T> sum{};
      for (const RoiShare<T>& share : shares)
        sum += share.weight * load_some(maps + share.pixel * roi.width + x, columns - x);
      store(turned + channel * padded + x, sum);
    }
  transpose(turned, padded, roi.row, kLanes<T>, kLanes<T>, padded);
}

// Calls visit(i, end) for the rows of bins [i, end) that are transposed together.
template <typename T, typename Visit>
void each_tile(const RoiAverage<T>& roi, const Visit& visit) {
  for (int64_t i = 0; i < roi.output_h; i += roi.tile_rows)
    visit(i, i + roi.tile_rows < roi.output_h ? i + roi.tile_rows : roi.output_h);
}

template <int Vectors, typename T, typename S, typename SumOverY>
void average(const RoiAverage<T>& roi, int64_t channels, S* output, const SumOverY& sum_over_y) {
  constexpr int lanes = kLanes<T>, block = Vectors * lanes;
  const T scale = T(1) / roi.count;
  const int64_t bins = roi.output_h * roi.output_w;
  each_tile(roi, [&](int64_t begin, int64_t end) {
    T* bin = roi.tile;
    for (int64_t i = begin; i < end; ++i) {
      sum_over_y(roi.y.bin(i));
      for (int64_t j = 0; j < roi.output_w; ++j, bin += block) {
        Vector<T> sum[Vectors] = {};
        for (const RoiShare<T>& share : roi.x.bin(j)) {
          const T* const column = roi.row + (share.pixel - roi.first) * block;
          for (int v = 0; v < Vectors; ++v) sum[v] += share.weight * load(column + v * lanes);
        }
        for (int v = 0; v < Vectors; ++v) store(bin + v * lanes, scale * sum[v]);
      }
    }
    const int64_t count = (end - begin) * roi.output_w;
    S* const to = output + begin * roi.output_w;
    if constexpr (std::is_same_v<S, T>) {
      transpose(roi.tile, block, to, bins, count, channels);
    } else {
      T* const turned = roi.tile + count * block;
      transpose(roi.tile, block, turned, count, count, channels);
      for (int64_t c = 0; c < channels; ++c) store_row(turned + c * count, to + c * bins, count);
    }
  });
}

template <typename T, typename S>
void forward(const RoiAverage<T>& roi, const S* maps, int64_t channels, S* output) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t count = channels - c < lanes ? channels - c : lanes;
    average<1>(roi, count, output + c * roi.output_h * roi.output_w, [&](const Range<T>& shares) {
      sum_channels(roi, shares, maps + c * roi.pixels + roi.first, count);
    });
  }
}

template <typename T, typename S>
void forward_by_pixel(const RoiAverage<T>& roi, const S* maps, int64_t map_channels, int64_t channels,
                      S* output) {
  constexpr int64_t lanes = kLanes<T>;
  const auto sum = [&](auto vectors, int64_t c) {
    constexpr int Vectors = decltype(vectors)::value;
    const S* const from = maps + roi.first * map_channels + c;
    average<Vectors>(roi, Vectors * lanes, output + c * roi.output_h * roi.output_w,
                     [&](const Range<T>& shares) { sum_pixels<Vectors>(roi, shares, from, map_channels); });
  };
  constexpr int most = kRoiBlockChannels / lanes < 8 ? kRoiBlockChannels / lanes : 8;
  int64_t c = 0;
  for (; c + most * lanes <= channels; c += most * lanes) sum(std::integral_constant<int, most>{}, c);
  for (; c + lanes <= channels; c += lanes) sum(std::integral_constant<int, 1>{}, c);
  if (c < channels) sum(std::integral_constant<int, 1>{}, channels - lanes);  // computes some channels again
}

// Adds to maps [channels][pixels] the gradient of a row of bins, [column][channel] in roi.row.
template <typename T>
void add_channels(const RoiAverage<T>& roi, const Range<T>& shares, T* grad_maps, int64_t channels) {
  const int64_t columns = roi.last + 1 - roi.first, padded = padded_columns(roi);
  T* const turned = roi.row + padded * kLanes<T>;
  transpose(roi.row, kLanes<T>, turned, padded, padded, kLanes<T>);
  for (int64_t channel = 0; channel < channels; ++channel, grad_maps += roi.pixels)
    for (int64_t x = 0; x < padded; x += kLanes<T>) {
      const Vector<T> gradient = load(turned + channel * padded + x);
      for (const RoiShare<T>& share : shares) {
        T* const target = grad_maps + share.pixel * roi.width + x;
        store_some(target, load_some(target, columns - x) + share.weight * gradient, columns - x);
      }
    }
}

template <typename T, typename S>
void backward(const RoiAverage<T>& roi, const S* grad_output, int64_t channels, T* grad_maps) {
  constexpr int64_t lanes = kLanes<T>;
  const T scale = T(1) / roi.count;
  const int64_t bins = roi.output_h * roi.output_w;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t count = channels - c < lanes ? channels - c : lanes;
    each_tile(roi, [&](int64_t begin, int64_t end) {
      const int64_t size = (end - begin) * roi.output_w;
      const S* const from = grad_output + c * bins + begin * roi.output_w;
      T* const turned = roi.tile + size * lanes;
      if constexpr (std::is_same_v<S, T>) {
        transpose(from, bins, roi.tile, lanes, count, size);
      } else {
        for (int64_t channel = 0; channel < count; ++channel)
          load_row(from + channel * bins, turned + channel * size, size);
        transpose(turned, size, roi.tile, lanes, count, size);
      }
      const T* bin = roi.tile;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t x = roi.first; x <= roi.last; ++x) store(roi.row + (x - roi.first) * lanes, Vector<T>{});
        for (int64_t j = 0; j < roi.output_w; ++j, bin += lanes) {
          const Vector<T> gradient = scale * load(bin);
          for (const RoiShare<T>& share : roi.x.bin(j)) {
            T* const column = roi.row + (share.pixel - roi.first) * lanes;
            store(column, load(column) + share.weight * gradient);
          }
        }
        add_channels(roi, roi.y.bin(i), grad_maps + c * roi.pixels + roi.first, count);
      }
    });
  }
}

template <typename T, typename S = T>
constexpr RoiAlignKernels<T, S> kernels_of{forward<T, S>, backward<T, S>, forward_by_pixel<T, S>};

}  // namespace

const StoredKernelTable<RoiAlignKernels>& roi_align_kernels() {
  static const StoredKernelTable<RoiAlignKernels> kernels{
      {kernels_of<float>, DCNZOO_DOUBLE_KERNELS(roi_align_kernels, kernels_of<double>)},
      kernels_of<float, BFloat16Bits>};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
