"""Operators of ``mmcv._ext`` in vectorised PyTorch, by kind, with mmcv's names and arguments.

As in mmcv, tensors named ``output``, ``ious`` and ``argmax``, and ``grad_…`` of inputs, belong to the caller
and are written in place. Half precision is computed in float32. mmcv passes all arguments except tensors by
keyword: the ``**options`` of a function are the arguments of the private function that it calls.
"""
