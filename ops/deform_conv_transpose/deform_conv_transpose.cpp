// deform_conv_transpose: the adjoint of deform_conv with respect to its input, so that it needs no kernels of its own.
// Its input corresponds to deform_conv's output, and its output to deform_conv's input.
#include "../common/memory_format.h"
#include "../deform_conv/deform_conv_checks.h"

namespace dcnzoo {
namespace {

// Checks the arguments; returns the sizes of the output.
std::vector<int64_t> check_deform_conv_transpose(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& output_padding,
    const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step) {
  const ConvolutionChecks checks("deform_conv_transpose", input, weight, stride, padding, dilation, groups,
                                 im2col_step);
  const int64_t rank = checks.rank, taps = product(checks.kernel);
  checks.check_weight(weight, input.size(1), kPositive);
  checks.numbers("output_padding", output_padding, rank, 0);
  std::vector<int64_t> output{input.size(0), weight.size(1) * groups}, in;
  for (int64_t axis = 0; axis < rank; ++axis) {
    const int64_t kernel = checks.kernel[axis];
    in.push_back(input.size(axis + 2));
    check(output_padding[axis] < stride[axis], checks.op, ": output_padding: expected less than stride ",
          shape_text(stride), ", got ", shape_text(output_padding));
    const int64_t size = (in[axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (kernel - 1) +
                         output_padding[axis] + 1;
    check(in[axis] >= 1 && size >= 1, checks.op,
          ": input: expected a size that gives an output of at least 1 on axis ", axis + 2, " (kernel ",
          kernel, ", stride ", stride[axis], ", padding ", padding[axis], ", output_padding ",
          output_padding[axis], ", dilation ", dilation[axis], "), got ", in[axis], ", which gives ", size);
    output.push_back(size);
  }
  checks.groups_of("offset", offset, rank * taps, output[1], in);
  checks.groups_of("mask", mask, taps, output[1], in);
  if (bias) checks.tensor("bias", *bias, {output[1]});
  return output;
}

// The gradient of deform_conv's input, which has these sizes, for the gradient `grad_output` of its output.
Tensor adjoint(const Tensor& grad_output, const std::vector<int64_t>& sizes, const Tensor& weight,
               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation, int64_t groups, std::optional<int64_t> im2col_step) {
  // Only its sizes and memory format are used, not its values.
  const Tensor input = new_output(grad_output, sizes, wants_channels_last(grad_output));
  const std::array<bool, 5> wanted{true, false, false, false, false};
  return call_operator<5>("dcnzoo::_deform_conv_backward", "", grad_output, input, weight, offset, mask,
                          stride, padding, dilation, groups, im2col_step,
                          torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))[0];
}

Tensor deform_conv_transpose(const Tensor& input, const Tensor& weight, std::optional<Tensor> offset,
                             std::optional<Tensor> mask, std::optional<Tensor> bias,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& output_padding, const std::vector<int64_t>& dilation,
                             int64_t groups, std::optional<int64_t> im2col_step) {
  const std::vector<int64_t> sizes = check_deform_conv_transpose(
      input, weight, offset, mask, bias, stride, padding, output_padding, dilation, groups, im2col_step);
  const auto spread = [&](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& offset,
                          const std::optional<Tensor>& mask) {
    return adjoint(input, sizes, weight, offset, mask, stride, padding, dilation, groups, im2col_step);
  };
  if (!bias) return spread(input, weight, offset, mask);
  std::vector<int64_t> per_channel(sizes.size(), 1);
  per_channel[1] = sizes[1];
  const Tensor bias_map = torch::stable::reshape(*bias, per_channel);
  // Subtracts -1 · bias: the stable ABI has no addition, and aten::add's alpha cannot be passed to its dispatcher.
  if (!is_half(input.scalar_type()) || !input.is_cpu())
    return torch::stable::subtract(spread(input, weight, offset, mask), bias_map, -1.0);
  // The CPU kernel computes half types in float: convert here, to round only once, after the bias.
  const auto wide = [](const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); };
  const auto wide_or_none = [&](const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(wide(*tensor)) : std::nullopt;
  };
  const Tensor output = spread(wide(input), wide(weight), wide_or_none(offset), wide_or_none(mask));
  return torch::stable::to(torch::stable::subtract(output, wide(bias_map), -1.0), input.scalar_type());
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def(
      "deform_conv_transpose(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, "
      "int[] stride, int[] padding, int[] output_padding, int[] dilation, int groups, "
      "int? im2col_step) -> Tensor");
}

// The same function for both devices: it only calls operators that both have.
STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("deform_conv_transpose", TORCH_BOX(&dcnzoo::deform_conv_transpose));
}
STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("deform_conv_transpose", TORCH_BOX(&dcnzoo::deform_conv_transpose));
}
