// Checks and sizes that the CPU and the CUDA kernels of new_op share.
#pragma once

#include <tuple>

#include "../common/tensor.h"

namespace dcnzoo {

struct NewOpSizes {
  int64_t batch, channels, pixels;
};

inline NewOpSizes check_new_op(const Tensor& input, const Tensor& weight) {
  const std::vector<int64_t> size = sizes_of(input);
  check(is_floating(input.scalar_type()),
        "new_op: input: expected float64, float32, bfloat16 or float16, got ",
        dtype_name(input.scalar_type()));
  check(size.size() == 4, "new_op: input: expected 4 dimensions (N, C, H, W), got shape ", shape_text(size));
  check(weight.dim() == 1 && weight.size(0) == size[1], "new_op: weight: expected shape (", size[1],
        ",), one per channel, got ", shape_text(sizes_of(weight)));
  check(weight.scalar_type() == input.scalar_type(), "new_op: weight: expected ",
        dtype_name(input.scalar_type()), " like input, got ", dtype_name(weight.scalar_type()));
  check(same_device(weight, input), "new_op: weight: expected device ", device_name(input),
        " like input, got ", device_name(weight));
  return {size[0], size[1], size[2] * size[3]};
}

inline NewOpSizes check_new_op_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                        const std::vector<bool>& output_mask) {
  const NewOpSizes sizes = check_new_op(input, weight);
  check(sizes_of(grad_output) == sizes_of(input), "new_op: grad_output: expected shape ",
        shape_text(sizes_of(input)), ", got ", shape_text(sizes_of(grad_output)));
  check(grad_output.scalar_type() == input.scalar_type(), "new_op: grad_output: expected ",
        dtype_name(input.scalar_type()), " like input, got ", dtype_name(grad_output.scalar_type()));
  check(same_device(grad_output, input), "new_op: grad_output: expected device ", device_name(input),
        " like input, got ", device_name(grad_output));
  check(output_mask.size() == 2, "new_op: output_mask: expected 2 values, got ", output_mask.size());
  return sizes;
}

// An uninitialised gradient, or an empty tensor if it is not needed.
inline Tensor new_op_gradient(const Tensor& like, bool needed) {
  return torch::stable::new_empty(like, needed ? sizes_of(like) : std::vector<int64_t>{0});
}

}  // namespace dcnzoo
