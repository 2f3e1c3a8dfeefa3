// Sizes and checks that the RoI pooling operators share, on all devices.
#pragma once

#include "argument_checks.h"
#include "integers.h"
#include "roi_math.h"

namespace dcnzoo {

struct RoiShapes {
  static constexpr int kChannelsOfThread = 1;  // on a GPU
  static constexpr int64_t columns = 5;        // of the RoIs: image, x1, y1, x2, y2
  int64_t batch, channels, height, width;      // of the input
  int64_t rois, output_h, output_w;
  double spatial_scale;
  int64_t sampling_ratio;

  DCNZOO_HD int64_t pixels() const { return height * width; }
  DCNZOO_HD int64_t bins() const { return output_h * output_w; }
  std::vector<int64_t> input_sizes() const { return {batch, channels, height, width}; }
  std::vector<int64_t> output_sizes() const { return {rois, channels, output_h, output_w}; }
};

struct RoiChecks {
  const char* op;
  const Tensor& rois;
  int64_t columns = RoiShapes::columns;
  const char* fields = "image, x1, y1, x2, y2";

  RoiShapes forward(const Tensor& input, int64_t output_h, int64_t output_w, double spatial_scale,
                    int64_t sampling_ratio) const {
    tensors("input", input);
    return shapes(sizes_of(input), output_h, output_w, spatial_scale, sampling_ratio);
  }

  RoiShapes backward(const Tensor& grad_output, const std::vector<int64_t>& input_size, double spatial_scale,
                     int64_t sampling_ratio) const {
    tensors("grad_output", grad_output);
    check(grad_output.dim() == 4 && input_size.size() == 4 && grad_output.size(0) == rois.size(0) &&
              grad_output.size(1) == input_size[1],
          op, ": grad_output: expected shape (rois, channels, output_h, output_w), got ",
          shape_text(sizes_of(grad_output)), " for ", rois.size(0), " rois and input shape ",
          shape_text(input_size));
    return shapes(input_size, grad_output.size(2), grad_output.size(3), spatial_scale, sampling_ratio);
  }

 private:
  void tensors(const char* name, const Tensor& maps) const {
    check_floating(maps, op, ": ", name);
    check(rois.dim() == 2 && rois.size(1) == columns, op, ": rois: expected shape (K, ", columns, "), each (",
          fields, "), got ", shape_text(sizes_of(rois)));
    check_floating(rois, op, ": rois");
    check(same_device(rois, maps), op, ": rois: expected device ", device_name(maps), " like ", name,
          ", got ", device_name(rois));
  }

  RoiShapes shapes(const std::vector<int64_t>& input_size, int64_t output_h, int64_t output_w,
                   double spatial_scale, int64_t sampling_ratio) const {
    check(input_size.size() == 4, op, ": input: expected 4 dimensions (N, C, H, W), got shape ",
          shape_text(input_size));
    check(input_size[2] > 0 && input_size[3] > 0, op,
          ": input: expected at least 1 pixel in height and width, got shape ", shape_text(input_size));
    constexpr int64_t most = 1 << 15;
    check(output_h >= 1 && output_w >= 1, op, ": output_size: expected at least (1, 1), got (", output_h,
          ", ", output_w, ")");
    check(output_h <= most && output_w <= most, op, ": output_size: expected at most (", most, ", ", most,
          "), got (", output_h, ", ", output_w, ")");
    check(sampling_ratio <= kMaxSamplingRatio, op, ": sampling_ratio: expected at most ", kMaxSamplingRatio,
          ", got ", sampling_ratio);
    check(spatial_scale > 0 && std::isfinite(spatial_scale), op,
          ": spatial_scale: expected a positive number, got ", spatial_scale);
    return {input_size[0], input_size[1], input_size[2], input_size[3], rois.size(0),
            output_h,      output_w,      spatial_scale, sampling_ratio};
  }
};

}  // namespace dcnzoo
