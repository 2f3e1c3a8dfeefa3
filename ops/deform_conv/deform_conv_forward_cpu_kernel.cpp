// The kernels of deform_conv's forward on the CPU. walk.h describes what they do.
#include "walk.h"

namespace dcnzoo::DCNZOO_CPU_NAMESPACE {
namespace {

template <typename T, typename S>
int64_t tile_bytes(const ForwardParams<T, S>& p) {
  return dispatch_rank(p.shape.rank, [&](auto rank) { return bytes_of<ForwardMemory<T, S, rank()>>(p); });
}

template <typename T, typename S>
void compute_tile(const ForwardParams<T, S>& p, int64_t first, int64_t rows, char* memory) {
  dispatch_rank(p.shape.rank,
                [&](auto rank) { ForwardTile<T, S, rank()>(p, first, rows, {memory}).compute(); });
}

// With AMX, convolutions of few channels spend most of their time on sampling. Sampling in float is faster in two cases: the
// channels fill only one half vector, or they do not fill half vectors and bfloat16 is converted value by value.
bool suits([[maybe_unused]] int64_t channels) {
#if defined(__AMX_BF16__)
  constexpr int64_t half = kLanes<float> / 2;
  return channels % half == 0 && channels > half;
#else
  return true;
#endif
}

template <typename T, typename S = T>
constexpr DeformConvForward<T, S> kernels_of{
    kNR<S>, suits, tile_bytes<T, S>, pack_forward<T, S>, compute_tile<T, S>, transpose<S>, to_lanes<S>};

}  // namespace

const StoredKernelTable<DeformConvForward>& deform_conv_forward_kernels() {
  static const StoredKernelTable<DeformConvForward> kernels{
      {DCNZOO_FLOAT_KERNELS(deform_conv_forward_kernels, kernels_of<float>),
       DCNZOO_DOUBLE_KERNELS(deform_conv_forward_kernels, kernels_of<double>)},
      DCNZOO_BFLOAT16_KERNELS(kernels_of<float, BFloat16Bits>)};
  return kernels;
}

}  // namespace dcnzoo::DCNZOO_CPU_NAMESPACE
