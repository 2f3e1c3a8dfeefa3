#include "../common/tensor.h"

#include "deform_roi_pool_checks.h"

namespace dcnzoo {
namespace {

// The checks of the kernels, with the same messages, for kernels that are not written in C++.
void check_deform_roi_pool_arguments(const Tensor& input, const Tensor& rois, const Tensor& offset,
                                     int64_t output_h, int64_t output_w, double spatial_scale,
                                     int64_t sampling_ratio, double gamma,
                                     std::optional<Tensor> grad_output) {
  const DeformRoiPoolShapes s =
      check_deform_roi_pool(input, rois, offset, output_h, output_w, spatial_scale, sampling_ratio, gamma);
  if (grad_output)
    check_backward("deform_roi_pool backward: ", *grad_output, s.output_sizes(), input, {false, false}, 2);
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, "
      "float spatial_scale, int sampling_ratio, float gamma) -> Tensor");
  // output_mask: which of the two gradients are needed; the others are empty.
  m.def(
      "_deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor offset, "
      "float spatial_scale, int sampling_ratio, float gamma, bool[2] output_mask) "
      "-> (Tensor grad_input, Tensor grad_offset)");
  m.def(
      "_check_deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, "
      "float spatial_scale, int sampling_ratio, float gamma, Tensor? grad_output=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_check_deform_roi_pool", TORCH_BOX(&dcnzoo::check_deform_roi_pool_arguments));
}
