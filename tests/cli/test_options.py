"""Every option is used or refused."""

from pathlib import Path

import click
import pytest

import dcnzoo
from dcnzoo.detect.session import Session
from dcnzoo.report.report import write_report
from dcnzoo.utils.errors import UserError

from ..commands import error_of
from .test_cli import every_command

COMMANDS = {
    context.info_name.removeprefix("dcnzoo "): context.command
    for context in every_command()
    if not isinstance(context.command, click.Group) and context.info_name != "dcnzoo run"
}
TEXTS = [
    (name, param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name)
    for name, command in COMMANDS.items()
    for param in command.params
    if isinstance(param, click.Argument) or not param.is_flag
]


# None means not given; an empty text and 0 are given


@pytest.mark.parametrize(("command", "param"), TEXTS)
def test_an_empty_text_is_no_value(command, param):
    given = [param, ""] if param.startswith("-") else [""]
    message = error_of(*command.split(), *given, status=2)
    assert "empty text" in message and (param in message or given == [""])


@pytest.mark.parametrize(
    ("function", "arguments", "options", "named"),
    [
        (dcnzoo.load, [""], {}, "model: "),
        (dcnzoo.load, ["mask-rcnn_r14_fpn_8e_shapes"], {"checkpoint": ""}, "checkpoint: "),
        (dcnzoo.load, ["m.onnx"], {"checkpoint": ""}, "checkpoint: "),
        (dcnzoo.load, ["m.onnx"], {"cfg_options": []}, "cfg_options: "),
        (dcnzoo.load, ["mask-rcnn_r14_fpn_8e_shapes"], {"cfg_options": []}, "cfg_options: "),
        (dcnzoo.train, [], {}, "model: "),
        (dcnzoo.train, [""], {}, "model: "),
        (dcnzoo.train, [""], {"data": "fruits"}, "model: "),
        (dcnzoo.train, [], {"data": "fruits", "epochs": 0}, "epochs: "),
        (dcnzoo.train, ["mask-rcnn_r14_fpn_8e_shapes"], {"resume": ""}, "resume: "),
        (dcnzoo.train, ["mask-rcnn_r14_fpn_8e_shapes"], {"logger": ""}, "logger: "),
        (dcnzoo.train, ["mask-rcnn_r14_fpn_8e_shapes"], {"work_dir": ""}, "work_dir: "),
        (Session, ["m.onnx", ""], {}, "backend: "),
        (write_report, [[Path("work")], ""], {}, "out: "),
    ],
)
def test_a_default_replaces_only_none(function, arguments, options, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").touch()
    Path("fruits").mkdir()
    with pytest.raises((UserError, ValueError, TypeError)) as error:
        function(*arguments, **options)
    assert str(error.value).startswith(named), error.value
