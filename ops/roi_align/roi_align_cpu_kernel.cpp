#include "roi_align_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

// Sums over y first: that loop runs over contiguous pixels, and the gather over x then reads only one row.
template <typename T>
void forward(const RoiAverage<T>& roi, const T* maps, int64_t channels, T* output) {
  T* __restrict row = roi.row;
  for (int64_t channel = 0; channel < channels; ++channel, maps += roi.pixels) {
    for (int64_t i = 0; i < roi.output_h; ++i, output += roi.output_w) {
      for (int64_t x = roi.first; x <= roi.last; ++x) row[x] = T(0);
      for (const RoiShare<T>& share : roi.y.bin(i)) {
        const T* source = maps + share.pixel * roi.width;
        const T weight = share.weight;
        for (int64_t x = roi.first; x <= roi.last; ++x) row[x] += weight * source[x];
      }
      for (int64_t j = 0; j < roi.output_w; ++j) {
        T sum = T(0);
        for (const RoiShare<T>& share : roi.x.bin(j)) sum += share.weight * row[share.pixel];
        output[j] = sum / roi.count;
      }
    }
  }
}

template <typename T>
void backward(const RoiAverage<T>& roi, const T* grad_output, int64_t channels, T* grad_maps) {
  T* __restrict row = roi.row;
  for (int64_t channel = 0; channel < channels; ++channel, grad_maps += roi.pixels) {
    for (int64_t i = 0; i < roi.output_h; ++i, grad_output += roi.output_w) {
      for (int64_t x = roi.first; x <= roi.last; ++x) row[x] = T(0);
      for (int64_t j = 0; j < roi.output_w; ++j) {
        const T gradient = grad_output[j] / roi.count;
        for (const RoiShare<T>& share : roi.x.bin(j)) row[share.pixel] += share.weight * gradient;
      }
      for (const RoiShare<T>& share : roi.y.bin(i)) {
        T* target = grad_maps + share.pixel * roi.width;
        const T weight = share.weight;
        for (int64_t x = roi.first; x <= roi.last; ++x) target[x] += weight * row[x];
      }
    }
  }
}

// Channels that a loop over shares sums at a time: each share is read once for all of them, and independent sums hide
// the latency of additions.
constexpr int kTogether = 8;

template <int Channels, typename T>
DCNZOO_HD void forward_some(const RotatedRoiAverage<T>& roi, const T* maps, T* output) {
  for (int64_t bin = 0; bin < roi.bins; ++bin) {
    T sums[Channels] = {};
    for (const RoiShare<T>& share : roi.shares.bin(bin))
      for (int c = 0; c < Channels; ++c) sums[c] += share.weight * maps[c * roi.pixels + share.pixel];
    for (int c = 0; c < Channels; ++c) output[c * roi.bins + bin] = sums[c] / roi.count;
  }
}

template <int Channels, typename T>
DCNZOO_HD void backward_some(const RotatedRoiAverage<T>& roi, const T* grad_output, T* grad_maps) {
  for (int64_t bin = 0; bin < roi.bins; ++bin) {
    T gradients[Channels];
    for (int c = 0; c < Channels; ++c) gradients[c] = grad_output[c * roi.bins + bin] / roi.count;
    for (const RoiShare<T>& share : roi.shares.bin(bin))
      for (int c = 0; c < Channels; ++c)
        grad_maps[c * roi.pixels + share.pixel] += share.weight * gradients[c];
  }
}

template <typename T>
void forward(const RotatedRoiAverage<T>& roi, const T* maps, int64_t channels, T* output) {
  int64_t c = 0;
  for (; c + kTogether <= channels; c += kTogether)
    forward_some<kTogether>(roi, maps + c * roi.pixels, output + c * roi.bins);
  for (; c < channels; ++c) forward_some<1>(roi, maps + c * roi.pixels, output + c * roi.bins);
}

template <typename T>
void backward(const RotatedRoiAverage<T>& roi, const T* grad_output, int64_t channels, T* grad_maps) {
  int64_t c = 0;
  for (; c + kTogether <= channels; c += kTogether)
    backward_some<kTogether>(roi, grad_output + c * roi.bins, grad_maps + c * roi.pixels);
  for (; c < channels; ++c) backward_some<1>(roi, grad_output + c * roi.bins, grad_maps + c * roi.pixels);
}

template <typename T>
constexpr RoiAlignKernels<T> kernels_of{{forward<T>, backward<T>}, {forward<T>, backward<T>}};

}  // namespace

const KernelTable<RoiAlignKernels>& roi_align_kernels() {
  static constexpr KernelTable<RoiAlignKernels> kernels{kernels_of<float>, kernels_of<double>};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
