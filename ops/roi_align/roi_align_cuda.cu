#include "../common/roi.cuh"
#include "roi_align_checks.h"

namespace dcnzoo {
namespace {

Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, int64_t output_h, int64_t output_w,
                      double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignShapes s =
      check_roi_align(input, rois, output_h, output_w, spatial_scale, sampling_ratio, aligned);
  return roi_average(s, input, rois, [&](auto) { return s; });
}

Tensor roi_align_backward_cuda(const Tensor& grad_output, const Tensor& rois, std::vector<int64_t> input_size,
                               double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const RoiAlignShapes s =
      check_roi_align_backward(grad_output, rois, input_size, spatial_scale, sampling_ratio, aligned);
  return roi_average_backward(s, grad_output, rois, [&](auto) { return s; });
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&dcnzoo::roi_align_cuda));
  m.impl("_roi_align_backward", TORCH_BOX(&dcnzoo::roi_align_backward_cuda));
}
