"""Deformable convolution as one fused matrix product for tensor cores, attention and pooling, in Triton.

The first call that may use a fused kernel imports Triton; ``import dcnzoo.ops`` does not need it. The code is
not specific to CUDA: it works with any driver of Triton.
"""
