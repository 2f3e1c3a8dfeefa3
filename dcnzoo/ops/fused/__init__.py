"""Deformable convolution as one fused matrix product for tensor cores, in Triton.

The first call that may use a fused kernel imports this package, so ``import dcnzoo.ops`` does not need
Triton. The code is not specific to CUDA: it works with any driver of Triton.
"""
