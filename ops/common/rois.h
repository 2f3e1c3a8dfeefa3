// Sizes and checks that the RoI pooling operators share, on all devices.
#pragma once

#include "argument_checks.h"
#include "integers.h"
#include "roi_math.h"

namespace dcnzoo {

struct RoiShapes {
  static constexpr int kChannelsOfThread = 1;  // on a GPU
  static constexpr int64_t kColumns = 5;       // of the RoIs: image, x1, y1, x2, y2
  int64_t batch, channels, height, width;      // of the input
  int64_t rois, output_h, output_w;
  double spatial_scale;
  int64_t sampling_ratio;

  DCNZOO_HD int64_t pixels() const { return height * width; }
  DCNZOO_HD int64_t bins() const { return output_h * output_w; }
  std::vector<int64_t> input_sizes() const { return {batch, channels, height, width}; }
  std::vector<int64_t> output_sizes() const { return {rois, channels, output_h, output_w}; }
};

// The first tensor is the input or, in the backward, the gradient of the output.
struct RoiChecks : ArgumentChecks {
  RoiShapes forward(const Tensor& rois, int64_t output_h, int64_t output_w, double spatial_scale,
                    int64_t sampling_ratio) const {
    tensor("input", first, {kAny, kAny, kPositive, kPositive}, Type::floating);
    return shapes(rois, sizes_of(first), output_h, output_w, spatial_scale, sampling_ratio);
  }

  RoiShapes backward(const Tensor& rois, const std::vector<int64_t>& input_size, double spatial_scale,
                     int64_t sampling_ratio) const {
    check(input_size.size() == 4, op, ": input_size: expected 4 values, got ", input_size.size());
    const Size count = rois.dim() > 0 ? Size(rois.size(0)) : kAny;
    tensor("grad_output", first, {count, input_size[1], kAny, kAny}, Type::floating);
    return shapes(rois, input_size, first.size(2), first.size(3), spatial_scale, sampling_ratio);
  }

 private:
  RoiShapes shapes(const Tensor& rois, const std::vector<int64_t>& input_size, int64_t output_h,
                   int64_t output_w, double spatial_scale, int64_t sampling_ratio) const {
    tensor("rois", rois, {kAny, RoiShapes::kColumns}, Type::floating);
    check(input_size[2] > 0 && input_size[3] > 0, op,
          ": input: expected at least 1 pixel in height and width, got shape ", shape_text(input_size));
    constexpr int64_t most = 1 << 15;
    check(std::min(output_h, output_w) >= 1 && std::max(output_h, output_w) <= most, op,
          ": output_size: expected (1, 1) to (", most, ", ", most, "), got (", output_h, ", ", output_w, ")");
    check(sampling_ratio <= kMaxSamplingRatio, op, ": sampling_ratio: expected at most ", kMaxSamplingRatio,
          ", got ", sampling_ratio);
    check(spatial_scale > 0 && std::isfinite(spatial_scale), op,
          ": spatial_scale: expected a positive number, got ", spatial_scale);
    return {input_size[0], input_size[1], input_size[2], input_size[3], rois.size(0),
            output_h,      output_w,      spatial_scale, sampling_ratio};
  }
};

}  // namespace dcnzoo
