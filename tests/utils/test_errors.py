"""Errors on one line: names from files are escaped, and an error in dcnzoo says that it is one."""

import pytest

from dcnzoo.utils.errors import UserError, install_command, one_line, printable, user_errors
from dcnzoo.utils.findings import Finding, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fig", "fig"),
        ("Früchte 果物 🍇", "Früchte 果物 🍇"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b2J", r"\x9b2J"),  # the same sequence in one byte of C1
        ("a\u202egnp.exe", r"a\u202egnp.exe"),  # reverses the order of what follows
        ("\udcff.png", r"\udcff.png"),  # a file name that is not UTF-8, as Python decodes it
        ("a\0b", r"a\x00b"),
    ],
)
def test_names_are_printable(text, expected):
    assert printable(text) == expected
    printable(text).encode("utf-8")


def test_other_errors_have_their_type():
    with pytest.raises(UserError, match=r"^KeyError: x \(DCNZOO_TRACEBACK=1"), user_errors():
        {}["x"]
    with pytest.raises(UserError, match=r"^a: expected 1$"), user_errors():
        raise ValueError("a: expected\n1")


def test_an_error_of_a_worker_is_its_last_line():
    trace = "Original Traceback (most recent call last):\n  File 'a.py', line 1, in <module>\n"
    text = f"Caught {{}} in DataLoader worker process 0.\n{trace}{{}}: b.png: no\n picture"
    for kind in ("ValueError", "cv2.error", "dcnzoo.utils.errors.UserError"):
        assert one_line(Exception(text.format(kind, kind))) == "b.png: no picture"
    assert one_line(Exception("Caught a cold")) == "Caught a cold"


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("onnx.helper", "mmdet,onnx", 'pip install "dcnzoo[mmdet,onnx]"'),
        ("onnx", "mmdet", 'pip install "dcnzoo[onnx]"'),
        ("openvino", "mmdet,onnx", 'pip install "dcnzoo[openvino]"'),
        ("PIL", "data", 'pip install "dcnzoo[data]"'),
        ("mine", "mmdet", ""),
    ],
)
def test_the_command_that_installs_a_package(package, extra, command):
    assert install_command(ModuleNotFoundError(name=package), extra) == command
    assert install_command(ModuleNotFoundError("pip install it", name=package), extra) == ""


def test_many_findings_are_counted():
    lines = shown([Finding(f"{n}.txt", "empty") for n in range(23)], "data: ")
    assert lines[:1] + lines[19:] == ["data: 0.txt: empty", "data: 19.txt: empty", "… and 3 more"]
