#include "../common/parallel.h"
#include "new_op_checks.h"
#include "new_op_math.h"

namespace dcnzoo {
namespace {

// Computes the output from the input. From grad_output, the same formula computes grad_input.
template <typename T>
void scale(const NewOpSizes& s, const Tensor& input, const Tensor& weight, const Tensor& output) {
  const T *in = input.const_data_ptr<T>(), *factor = weight.const_data_ptr<T>();
  T* out = output.mutable_data_ptr<T>();
  parallel_for(s.batch * s.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane)
      for (int64_t i = plane * s.pixels; i < (plane + 1) * s.pixels; ++i)
        out[i] = new_op_at(in[i], factor[plane % s.channels]);
  });
}

// One thread sums one channel: the result is bit-identical for every number of threads.
template <typename T>
void sum_grad_weight(const NewOpSizes& s, const Tensor& grad_output, const Tensor& input,
                     const Tensor& grad_weight) {
  const T *grad = grad_output.const_data_ptr<T>(), *in = input.const_data_ptr<T>();
  T* out = grad_weight.mutable_data_ptr<T>();
  parallel_for(s.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      T sum = 0;
      for (int64_t n = 0; n < s.batch; ++n) {
        const int64_t first = (n * s.channels + c) * s.pixels;
        for (int64_t i = first; i < first + s.pixels; ++i) sum += grad[i] * in[i];
      }
      out[c] = sum;
    }
  });
}

Tensor new_op_cpu(const Tensor& input, const Tensor& weight) {
  const NewOpSizes sizes = check_new_op(input, weight);
  const ScalarType type = accumulate_type(input.scalar_type());
  const Tensor in = contiguous_as(input, type), factors = contiguous_as(weight, type);
  const Tensor output = torch::stable::new_empty(in, sizes_of(in));
  (type == ScalarType::Double ? scale<double> : scale<float>)(sizes, in, factors, output);
  return torch::stable::to(output, input.scalar_type());
}

std::tuple<Tensor, Tensor> new_op_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                               const Tensor& weight, const std::vector<bool>& output_mask) {
  const NewOpSizes sizes = check_new_op_backward(grad_output, input, weight, output_mask);
  const ScalarType type = accumulate_type(input.scalar_type());
  const bool wide = type == ScalarType::Double;
  const Tensor grad = contiguous_as(grad_output, type), in = contiguous_as(input, type);
  const Tensor factors = contiguous_as(weight, type);
  const Tensor grad_input = new_op_gradient(in, output_mask[0]);
  const Tensor grad_weight = new_op_gradient(factors, output_mask[1]);
  if (output_mask[0]) (wide ? scale<double> : scale<float>)(sizes, grad, factors, grad_input);
  if (output_mask[1]) (wide ? sum_grad_weight<double> : sum_grad_weight<float>)(sizes, grad, in, grad_weight);
  return {torch::stable::to(grad_input, input.scalar_type()),
          torch::stable::to(grad_weight, input.scalar_type())};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CPU, m) {
  m.impl("new_op", TORCH_BOX(&dcnzoo::new_op_cpu));
  m.impl("_new_op_backward", TORCH_BOX(&dcnzoo::new_op_backward_cpu));
}
