#include "roi_align_rotated_cpu_kernel.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

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

}  // namespace

const KernelTable<RoiAlignRotatedKernels>& roi_align_rotated_kernels() {
  static constexpr KernelTable<RoiAlignRotatedKernels> kernels{{forward<float>, backward<float>},
                                                               {forward<double>, backward<double>}};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
