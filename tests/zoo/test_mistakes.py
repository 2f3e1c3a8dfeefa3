"""Mistakes in calls: each names the argument or the setting."""

import math
from pathlib import Path

import pytest

import dcnzoo
from dcnzoo.detect.session import Session
from dcnzoo.utils.errors import UserError
from tests.helpers.demo import PLAIN

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
ARGUMENTS = [  # right types, wrong values
    (dcnzoo.train, (), {}, "model"),
    (dcnzoo.train, (PLAIN,), {"clip": True}, "clip"),
    (dcnzoo.test, (MODEL,), {"out": "x.txt"}, "out"),
    (dcnzoo.test, (MODEL,), {"show_score_thr": 0.5}, "show_score_thr"),
    (dcnzoo.test, (MODEL, "m.onnx"), {"tta": True}, "tta"),
    (dcnzoo.test, (MODEL, "m.onnx"), {"cfg_options": {"model.neck": None}}, "cfg_options"),
    # None means not given; an empty text, an empty list and 0 are given
    (dcnzoo.load, ("m.onnx",), {"checkpoint": ""}, "checkpoint"),
    (dcnzoo.train, ("",), {}, "model"),
    (dcnzoo.train, (PLAIN,), {"resume": ""}, "resume"),
    (dcnzoo.train, (), {"data": "fruits", "resume": True}, "resume"),
    (dcnzoo.train, ("trained/epoch_1.pth",), {}, "model"),
    (Session, ("m.onnx", ""), {}, "backend"),
    # numbers out of range
    (dcnzoo.train, (PLAIN,), {"epochs": "3"}, "epochs"),
    (dcnzoo.train, (PLAIN,), {"batch_size": 0}, "batch_size"),
    (dcnzoo.train, (PLAIN,), {"patience": 1.5}, "patience"),
    (dcnzoo.train, (PLAIN,), {"lr": math.nan}, "lr"),
    (dcnzoo.load, (MODEL,), {"score_threshold": 1.01}, "score_threshold"),
    # a switch that runs code of a file: a text is no permission, not even "no"
    (dcnzoo.load, (MODEL,), {"unsafe_load": "no"}, "unsafe_load"),
]


@pytest.mark.parametrize(("function", "positional", "options", "argument"), ARGUMENTS)
def test_arguments(function, positional, options, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").touch()
    Path("fruits").mkdir()
    Path("trained").mkdir()
    Path("trained/cfg.py").write_text("model = dict()")
    Path("trained/epoch_1.pth").touch()
    with pytest.raises((UserError, ValueError), match=f"^{argument}: expected "):
        function(*positional, **options)
