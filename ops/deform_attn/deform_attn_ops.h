// dcnv3, dcnv4 and ms_deform_attn on any device: checks, layouts and gradients around the forward and backward of a
// Backend:
//
//   static ScalarType field_type(const Tensor& input, std::initializer_list<const Tensor*> fields)
//     the type of offsets, locations and weights that its kernels expect
//   static Tensor new_sum(const Tensor& input)
//     memory for the gradient of the input
//   static LevelGrid levels(const DeformAttnShapes&, const Tensor& sizes, const Tensor& starts)
//   static Tensor forward(const DeformAttnShapes&, grid, input, offset, weight)
//   static void backward(const DeformAttnShapes&, grid, grad_output, input, offset, weight, const Gradients&)
//
// Offset and weight are contiguous, and so are their gradients, which have their type. The gradient of the input has the
// type of new_sum. A gradient is computed if its tensor is not empty. The gradients of offset and weight, which may be
// the same tensor, are always computed together.
#pragma once

#include <tuple>

#include "deform_attn_checks.h"

namespace dcnzoo {

struct Gradients {
  Tensor input, offset, weight;
};

template <typename Backend, typename... Numbers>  // the types of KernelArguments
struct DeformAttnOpsOf {
  static Tensor none(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

  template <typename Grid>
  static Tensor forward_of(const DeformAttnShapes& s, const Grid& grid, const Tensor& input,
                           const Tensor& offset, const Tensor& weight) {
    const ScalarType type = Backend::field_type(input, {&offset, &weight});
    return Backend::forward(s, grid, input, contiguous_as(offset, type), contiguous_as(weight, type));
  }

  template <typename Grid>
  static std::tuple<Tensor, Tensor, Tensor> backward_of(const DeformAttnShapes& s, const Grid& grid,
                                                        const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& offset, const Tensor& weight,
                                                        const std::vector<bool>& wanted) {
    const ScalarType type = Backend::field_type(input, {&offset, &weight});
    const Tensor offsets = contiguous_as(offset, type), weights = contiguous_as(weight, type);
    const bool fields = wanted[1] || wanted[2];
    const auto like = [&](const Tensor& tensor) {
      return fields ? torch::stable::new_empty(tensor, sizes_of(tensor)) : none(tensor);
    };
    const Gradients sums{wanted[0] ? Backend::new_sum(input) : none(input), like(offsets), like(weights)};
    Backend::backward(s, grid, grad_output, input, offsets, weights, sums);
    const auto as = [](const Tensor& sum, bool is_wanted, const Tensor& tensor) {
      return is_wanted ? as_type(sum, tensor.scalar_type()) : none(tensor);
    };
    return {as(sums.input, wanted[0], input), as(sums.offset, wanted[1], offset),
            as(sums.weight, wanted[2], weight)};
  }

  static Tensor dcnv3(const Tensor& input, const Tensor& offset, const Tensor& mask, Numbers... numbers) {
    const KernelShapes s = check_dcnv3(input, offset, mask, {numbers...});
    return forward_of(s.sizes, s.grid, input, offset, mask);
  }

  static std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(const Tensor& grad_output, const Tensor& input,
                                                           const Tensor& offset, const Tensor& mask,
                                                           Numbers... numbers,
                                                           const std::vector<bool>& output_mask) {
    const KernelShapes s = check_dcnv3(input, offset, mask, {numbers...}, grad_output);
    ArgumentChecks{"dcnv3", grad_output}.output_mask(output_mask, 3);
    return backward_of(s.sizes, s.grid, grad_output, input, offset, mask, output_mask);
  }

  static Tensor dcnv4(const Tensor& input, const Tensor& offset_mask, Numbers... numbers) {
    const KernelShapes s = check_dcnv4(input, offset_mask, {numbers...});
    const Tensor fields = contiguous_as(offset_mask, Backend::field_type(input, {&offset_mask}));
    return Backend::forward(s.sizes, s.grid, input, fields, fields);
  }

  static std::tuple<Tensor, Tensor> dcnv4_backward(const Tensor& grad_output, const Tensor& input,
                                                   const Tensor& offset_mask, Numbers... numbers,
                                                   const std::vector<bool>& output_mask) {
    const KernelShapes s = check_dcnv4(input, offset_mask, {numbers...}, grad_output);
    ArgumentChecks{"dcnv4", grad_output}.output_mask(output_mask, 2);
    const Tensor fields = contiguous_as(offset_mask, Backend::field_type(input, {&offset_mask}));
    // zeros: no kernel writes the padding channels
    const Tensor of_fields =
        output_mask[1] ? torch::stable::new_zeros(fields, sizes_of(fields)) : none(fields);
    const Tensor of_input = output_mask[0] ? Backend::new_sum(input) : none(input);
    Backend::backward(s.sizes, s.grid, grad_output, input, fields, fields, {of_input, of_fields, of_fields});
    return {as_type(of_input, input.scalar_type()), as_type(of_fields, offset_mask.scalar_type())};
  }

  static Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                               const Tensor& level_start_index, const Tensor& sampling_locations,
                               const Tensor& attention_weights) {
    const DeformAttnShapes s =
        check_ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
    const Tensor sizes = torch::stable::contiguous(spatial_shapes);
    const Tensor starts = torch::stable::contiguous(level_start_index);
    return forward_of(s, Backend::levels(s, sizes, starts), value, sampling_locations, attention_weights);
  }

  static std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
      const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
      const Tensor& level_start_index, const Tensor& sampling_locations, const Tensor& attention_weights,
      const std::vector<bool>& output_mask) {
    const DeformAttnShapes s = check_ms_deform_attn(value, spatial_shapes, level_start_index,
                                                    sampling_locations, attention_weights, grad_output);
    ArgumentChecks{"ms_deform_attn", grad_output}.output_mask(output_mask, 3);
    const Tensor sizes = torch::stable::contiguous(spatial_shapes);
    const Tensor starts = torch::stable::contiguous(level_start_index);
    return backward_of(s, Backend::levels(s, sizes, starts), grad_output, value, sampling_locations,
                       attention_weights, output_mask);
  }
};

template <typename Backend>
using DeformAttnOps = WithNumbers<DeformAttnOpsOf, Backend>;

}  // namespace dcnzoo

#define DCNZOO_REGISTER_DEFORM_ATTN(device, Ops)                                  \
  STABLE_TORCH_LIBRARY_IMPL(dcnzoo, device, m) {                                  \
    m.impl("dcnv3", TORCH_BOX(&Ops::dcnv3));                                      \
    m.impl("dcnv4", TORCH_BOX(&Ops::dcnv4));                                      \
    m.impl("ms_deform_attn", TORCH_BOX(&Ops::ms_deform_attn));                    \
    m.impl("_dcnv3_backward", TORCH_BOX(&Ops::dcnv3_backward));                   \
    m.impl("_dcnv4_backward", TORCH_BOX(&Ops::dcnv4_backward));                   \
    m.impl("_ms_deform_attn_backward", TORCH_BOX(&Ops::ms_deform_attn_backward)); \
  }
