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

}  // namespace

const KernelTable<RoiAlignKernels>& roi_align_kernels() {
  static constexpr KernelTable<RoiAlignKernels> kernels{{forward<float>, backward<float>},
                                                        {forward<double>, backward<double>}};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
