"""Operators of ``mmcv._ext`` in vectorised PyTorch, by kind, with mmcv's names and arguments.

As in mmcv, tensors named ``output``, ``ious``, ``argmax`` and ``grad_…`` of inputs are the caller's and
written in place. Half types are computed in float32. mmcv gives all but tensors by keyword: where a function
has ``**options``, they are those of the private function that it calls.
"""
