"""Triton kernels: convolution as one fused product on tensor cores, attention, pooling, and NMS.

The first call that may use a fused kernel imports Triton; ``import dcnzoo.ops`` does not need it. The code is
not specific to CUDA: it works with any driver of Triton.
"""
