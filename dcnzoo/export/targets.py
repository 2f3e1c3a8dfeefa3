"""A file in the runtime that it is for, for ``dcnzoo export --verify``; docs/phones.md has the same calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dcnzoo.detect.session import Session

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def _mnn(path: str, names: Sequence[str]) -> Run:
    import _tools  # of the package MNN
    import MNN.expr
    import MNN.nn

    with TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.mnn")
        _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", path, "--MNNModel", file, "--bizCode", "_"])
        module = MNN.nn.load_module_from_file(file, ["input"], list(names))

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        image = np.ascontiguousarray(inputs["input"])
        constant = MNN.expr.const(image, list(image.shape), MNN.expr.NCHW, MNN.expr.float)
        return [np.array(value.read()) for value in module.forward([constant])]

    return run


def _tract(path: str, names: Sequence[str]) -> Run:
    import tract

    model = tract.onnx().load(path).into_model().into_runnable()
    return lambda inputs: [value.to_numpy() for value in model.run([inputs["input"]])]


OPEN: dict[str, Callable[[str, Sequence[str]], Run]] = {"mnn": _mnn, "tract": _tract}


def runtimes(session: Session, target: str) -> Iterator[str]:
    """Yield the name of a session's runtime, then that of the target, which runs the session from then on.

    The second one only if it is another one and its package is installed; LiteRT has no reader of ONNX files.
    """
    yield session.backend
    try:
        session._run = OPEN[target](session.path, session.output_names)
    except (KeyError, ModuleNotFoundError):
        return
    yield target
