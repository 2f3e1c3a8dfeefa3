// Checks and helpers that the RoI pooling operators share.
#pragma once

#include "integers.h"
#include "roi_math.h"
#include "tensor.h"

namespace dcnzoo {

inline void check_rois(const char* op, const Tensor& rois, const char* partner_name, const Tensor& partner,
                       int64_t columns = 5, const char* fields = "image, x1, y1, x2, y2") {
  check(rois.dim() == 2 && rois.size(1) == columns, op, ": rois: expected shape (K, ", columns, "), each (",
        fields, "), got ", shape_text(sizes_of(rois)));
  check(is_floating(rois.scalar_type()), op, ": rois: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(rois.scalar_type()));
  check(same_device(rois, partner), op, ": rois: expected device ", device_name(partner), " like ",
        partner_name, ", got ", device_name(rois));
}

inline void check_roi_pooling(const char* op, const std::vector<int64_t>& input_size, int64_t output_h,
                              int64_t output_w, double spatial_scale, int64_t sampling_ratio) {
  check(input_size.size() == 4, op, ": input: expected 4 dimensions (N, C, H, W), got shape ",
        shape_text(input_size));
  check(input_size[2] > 0 && input_size[3] > 0, op,
        ": input: expected at least 1 pixel in height and width, got shape ", shape_text(input_size));
  constexpr int64_t most = 1 << 15;
  check(output_h >= 1 && output_w >= 1, op, ": output_size: expected at least (1, 1), got (", output_h, ", ",
        output_w, ")");
  check(output_h <= most && output_w <= most, op, ": output_size: expected at most (", most, ", ", most,
        "), got (", output_h, ", ", output_w, ")");
  check(sampling_ratio <= kMaxSamplingRatio, op, ": sampling_ratio: expected at most ", kMaxSamplingRatio,
        ", got ", sampling_ratio);
  check(spatial_scale > 0 && std::isfinite(spatial_scale), op,
        ": spatial_scale: expected a positive number, got ", spatial_scale);
}

// The image index of each RoI. `rois` must be in host memory.
template <typename T>
std::vector<int64_t> images_of_rois(const char* op, const T* rois, int64_t count, int64_t batch,
                                    int64_t columns = 5) {
  std::vector<int64_t> images(count);
  for (int64_t k = 0; k < count; ++k) {
    const T image = rois[columns * k];
    check(image >= T(0) && image < T(batch), op, ": rois: expected image numbers in [0, ", batch, "), got ",
          image, " in row ", k);
    images[k] = int64_t(image);
  }
  return images;
}

// The RoIs of each image. In a backward, a thread owns channels of an image, not RoIs, because RoIs overlap: no two
// threads write to the same map, and the sum of a pixel has a fixed order.
inline std::vector<std::vector<int64_t>> rois_by_image(const std::vector<int64_t>& images, int64_t batch) {
  std::vector<std::vector<int64_t>> rois(batch);
  for (size_t k = 0; k < images.size(); ++k) rois[images[k]].push_back(int64_t(k));
  return rois;
}

// Channels per task on the CPU: few enough that their maps stay in the cache from one RoI to the next, and enough to
// make up for the cost of a RoI's tables.
constexpr int64_t kRoiChannels = 16;

}  // namespace dcnzoo
