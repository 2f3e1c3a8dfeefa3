// The division of RoI pooling among the threads of the CPU.
#pragma once

#include <tuple>

#include "parallel.h"
#include "roi_shares.h"
#include "rois.h"

namespace dcnzoo {

// Channels per task: few enough that their maps stay in the cache from one RoI to the next, and enough to make up for
// the cost of a RoI's tables.
constexpr int64_t kRoiChannels = 16;

// Some channels of a RoI.
template <typename T>
struct RoiTask {
  const T* roi;
  int64_t number, channels;  // number: of the RoI
  int64_t map, bin;          // the start of their maps in the input, and of their bins in the output
};

template <typename T>
class RoiTasks {
 public:
  RoiTasks(const char* op, const RoiShapes& shapes, const Tensor& rois)
      : shapes_(shapes), rois_(contiguous_as(rois, kTypeOf<T>)), images_(shapes.rois), order_(shapes.rois) {
    std::vector<T> tops(shapes.rois);
    for (int64_t k = 0; k < shapes.rois; ++k) {
      const T image = *roi(k);
      check(image >= T(0) && image < T(shapes.batch), op, ": rois: expected image numbers in [0, ",
            shapes.batch, "), got ", image, " in row ", k);
      images_[k] = int64_t(image);
      order_[k] = k;
      tops[k] = std::isfinite(roi(k)[2]) ? roi(k)[2] : T(0);
    }
    std::sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      return std::tie(images_[a], tops[a], a) < std::tie(images_[b], tops[b], b);
    });
  }

  // Calls function(tables, task) for every RoI and at most `most` of its channels. Every thread has its own tables.
  template <typename Tables, typename Function>
  void each(int64_t most, const Function& function) const {
    const int64_t rois = shapes_.rois;
    TaskQueue queue(ceil_div(shapes_.channels, most) * rois);
    queue.share_out([&](int64_t sequence) {
      Tables tables;
      for (int64_t i; queue.take(i, sequence);)
        function(tables, task(order_[i % rois], i / rois * most, most));
    });
  }

  // The same for a backward. A thread owns channels of an image, not RoIs, because RoIs overlap: no two threads write to
  // the same map, and the sum of a pixel has a fixed order.
  template <typename Tables, typename Function>
  void each_by_image(int64_t most, const Function& function) const {
    std::vector<std::vector<int64_t>> rois(shapes_.batch);
    for (int64_t k : order_) rois[images_[k]].push_back(k);
    const int64_t blocks = ceil_div(shapes_.channels, most);
    parallel_for(shapes_.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      Tables tables;
      for (int64_t i = begin; i < end; ++i)
        for (int64_t k : rois[i / blocks]) function(tables, task(k, i % blocks * most, most));
    });
  }

 private:
  const T* roi(int64_t k) const { return rois_.const_data_ptr<T>() + k * rois_.size(1); }

  // The task of at most `most` channels of a RoI, from `first` on.
  RoiTask<T> task(int64_t k, int64_t first, int64_t most) const {
    const int64_t channels = shapes_.channels;
    return {roi(k), k, std::min(most, channels - first), (images_[k] * channels + first) * shapes_.pixels(),
            (k * channels + first) * shapes_.bins()};
  }

  const RoiShapes shapes_;
  const Tensor rois_;
  std::vector<int64_t> images_;
  std::vector<int64_t> order_;  // from top to bottom of each image: neighbours read the same cache lines
};

}  // namespace dcnzoo
