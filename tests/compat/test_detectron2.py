"""detectron2's compiled module; its convolutions: test_deform_conv.py."""

import importlib


def test_detectron2_evaluates_with_pycocotools(provide, package):
    package(
        "detectron2.evaluation.fast_eval_api",
        "from detectron2 import _C\nclass COCOeval: pass\nclass COCOeval_opt(COCOeval): pass\n",
    )
    provide("detectron2._C")
    project = importlib.import_module("detectron2.evaluation.fast_eval_api")
    assert project.COCOeval_opt is project.COCOeval
    compiled = importlib.import_module("detectron2._C")
    assert "dcnzoo" in compiled.get_compiler_version() + compiled.get_cuda_version()
