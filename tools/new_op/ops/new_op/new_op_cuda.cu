#include "../common/dispatch.cuh"
#include "../common/launch.cuh"
#include "new_op_checks.h"
#include "new_op_math.h"

namespace dcnzoo {
namespace {

template <typename T>
__global__ void new_op_kernel(const T* input, const T* weight, int64_t count, int64_t channels,
                              int64_t pixels, T* output) {
  DCNZOO_FOR_EACH(i, count) {
    using Real = Accumulate<T>;
    output[i] = T(new_op_at(Real(input[i]), Real(weight[i / pixels % channels])));
  }
}

// One thread sums one channel, so the order of the additions is fixed.
template <typename T>
__global__ void new_op_grad_weight_kernel(const T* grad_output, const T* input, int64_t batch,
                                          int64_t channels, int64_t pixels, T* grad_weight) {
  DCNZOO_FOR_EACH(c, channels) {
    using Real = Accumulate<T>;
    Real sum = 0;
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t place = (n * channels + c) * pixels + i;
        sum += Real(grad_output[place]) * Real(input[place]);
      }
    grad_weight[c] = T(sum);
  }
}

// Computes the output from the input. From grad_output, the same formula computes grad_input.
template <typename T>
void launch_new_op(const NewOpSizes& s, const Tensor& input, const Tensor& weight, const Tensor& output) {
  const int64_t count = s.batch * s.channels * s.pixels;
  if (count > 0)
    launch("new_op_kernel", new_op_kernel<T>, blocks_for(count), kThreads, input, data_of<T>(input),
           data_of<T>(weight), count, s.channels, s.pixels, mutable_data_of<T>(output));
}

Tensor new_op_cuda(const Tensor& input_any, const Tensor& weight_any) {
  const NewOpSizes sizes = check_new_op(input_any, weight_any);
  const Tensor input = torch::stable::contiguous(input_any), weight = torch::stable::contiguous(weight_any);
  const Tensor output = torch::stable::new_empty(input, sizes_of(input));
  dispatch_floating(input.scalar_type(),
                    [&](auto t) { launch_new_op<decltype(t)>(sizes, input, weight, output); });
  return output;
}

std::tuple<Tensor, Tensor> new_op_backward_cuda(const Tensor& grad_any, const Tensor& input_any,
                                                const Tensor& weight_any,
                                                const std::vector<bool>& output_mask) {
  const NewOpSizes s = check_new_op_backward(grad_any, input_any, weight_any, output_mask);
  const Tensor grad_output = torch::stable::contiguous(grad_any);
  const Tensor input = torch::stable::contiguous(input_any), weight = torch::stable::contiguous(weight_any);
  const Tensor grad_input = new_op_gradient(input, output_mask[0]);
  const Tensor grad_weight = new_op_gradient(weight, output_mask[1]);
  dispatch_floating(input.scalar_type(), [&](auto t) {
    using T = decltype(t);
    if (output_mask[0]) launch_new_op<T>(s, grad_output, weight, grad_input);
    if (output_mask[1] && s.channels > 0)
      launch("new_op_grad_weight_kernel", new_op_grad_weight_kernel<T>, blocks_for(s.channels), kThreads,
             input, data_of<T>(grad_output), data_of<T>(input), s.batch, s.channels, s.pixels,
             mutable_data_of<T>(grad_weight));
  });
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CUDA, m) {
  m.impl("new_op", TORCH_BOX(&dcnzoo::new_op_cuda));
  m.impl("_new_op_backward", TORCH_BOX(&dcnzoo::new_op_backward_cuda));
}
