#include "../common/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def("new_op(Tensor input, Tensor weight) -> Tensor");
  // output_mask: which of the two gradients to compute; the other is empty.
  m.def(
      "_new_op_backward(Tensor grad_output, Tensor input, Tensor weight, bool[2] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight)");
}
