// Tables of the pixels and weights that bins read along one axis, for the CPU kernels of RoI pooling: a bin is the sum
// of y weight · x weight · pixel. All channels of a RoI share its tables.
#pragma once

#include <type_traits>
#include <vector>

#include "roi_math.h"

namespace dcnzoo {

template <typename T>
struct RoiShare {
  int64_t pixel;
  T weight;  // summed over the bin's samples
};

template <typename T>
struct RoiShareTable {
  struct Range {
    const RoiShare<T>*first, *last;
    DCNZOO_HD const RoiShare<T>* begin() const { return first; }
    DCNZOO_HD const RoiShare<T>* end() const { return last; }
  };
  const RoiShare<T>* shares;
  const int64_t* begins;  // the first share of each bin, then the end of the last bin

  DCNZOO_HD Range bin(int64_t i) const { return {shares + begins[i], shares + begins[i + 1]}; }
};

// Calls function(number, first) for `together` channels at a time, then for each of the rest. A loop over shares then reads each
// share once for all these channels, and their sums do not wait for each other.
template <int together, typename Function>
DCNZOO_HD void each_channels(int64_t channels, const Function& function) {
  int64_t first = 0;
  for (; first + together <= channels; first += together)
    function(std::integral_constant<int, together>(), first);
  for (; first < channels; ++first) function(std::integral_constant<int, 1>(), first);
}

template <typename T>
class RoiShares {
 public:
  void clear() {
    shares_.clear();
    begins_.assign(1, 0);
  }

  // Appends the weights of a bin's samples.
  void add_weights(const RoiAxis<T>& axis, int64_t bin, int64_t size) {
    each_sample(axis, bin, size, [&](const Lerp<T>& lerp) {
      add(lerp.low, lerp.low_weight);
      if (lerp.reads_two()) add(lerp.high, lerp.high_weight);
    });
    begins_.push_back(int64_t(shares_.size()));
  }

  // Appends the derivatives of the weights with respect to the bin's position; at a pixel, the right-hand ones.
  void add_slopes(const RoiAxis<T>& axis, int64_t bin, int64_t size) {
    each_sample(axis, bin, size, [&](const Lerp<T>& lerp) {
      if (!lerp.reads_two()) return;
      add(lerp.low, T(-1));
      add(lerp.high, T(1));
    });
    begins_.push_back(int64_t(shares_.size()));
  }

  RoiShareTable<T> table() const { return {shares_.data(), begins_.data()}; }
  typename RoiShareTable<T>::Range bin(int64_t i) const { return table().bin(i); }
  const std::vector<RoiShare<T>>& all() const { return shares_; }

 private:
  template <typename Visit>
  static void each_sample(const RoiAxis<T>& axis, int64_t bin, int64_t size, const Visit& visit) {
    const RoiSamples<T> samples(axis, bin, size);
    for (int64_t i = samples.span.begin; i < samples.span.end; ++i) visit(samples.lerp(i));
  }

  // Neighbouring samples read the same pixels, so that their weights are summed.
  void add(int64_t pixel, T weight) {
    const size_t begin = begins_.back(), end = shares_.size();
    for (size_t i = end; i > begin && i + 2 > end; --i) {
      if (shares_[i - 1].pixel != pixel) continue;
      shares_[i - 1].weight += weight;
      return;
    }
    shares_.push_back({pixel, weight});
  }

  std::vector<RoiShare<T>> shares_;
  std::vector<int64_t> begins_;
};

}  // namespace dcnzoo
