"""Exported detectors in runtimes of phones and boards, compared with PyTorch: ``nox -s runtimes``.

    python -m benchmarks.runtimes make FOLDER [NAME …]   # files and expected outputs; needs OpenMMLab
    python benchmarks/runtimes.py run RUNTIME FOLDER   # in the environment of a runtime: FOLDER/RUNTIME.json
    python -m benchmarks.runtimes table FOLDER PAGE    # all rows as Markdown, into the page

The difference is the largest one of an output, relative to that output's largest value. Of complete files, it
is that of boxes and scores, and all labels must be equal; masks are compared as ``--verify`` does.
"""

import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

DETECTORS = ("FCOS", "RetinaNet", "RTMDet", "YOLOX", "Mask R-CNN")
FILES = {name.replace(" ", "-"): name for name in DETECTORS}
RUNTIMES = {  # the packages whose versions are named
    "mnn": ("MNN",),
    "litert": ("ai-edge-litert", "onnx2tf"),
    "executorch": ("executorch",),
    "tract": ("tract",),
}
COMPLETE = ("mnn",)  # complete files, with NMS; the others run raw outputs
MARK = "<!-- the table: nox -s runtimes -->"
Outputs = dict[str, np.ndarray]


def make(folder: Path, names: Sequence[str] = ()) -> None:
    """Write each detector as ONNX and as a program of torch, with an input and PyTorch's outputs."""
    import torch

    from dcnzoo.export import decompositions
    from dcnzoo.export.options import ExportOptions
    from dcnzoo.openmmlab.export.export import write_detector
    from dcnzoo.openmmlab.export.predict import Predictor, RawHead

    for name in names or DETECTORS:
        detector, images = build(name)
        kinds = {"complete": Predictor(detector, sized=False)}
        if hasattr(detector, "bbox_head"):
            kinds["raw"] = RawHead(detector)
        for kind, model in kinds.items():
            path = folder / f"{name.replace(' ', '-')}_{kind}.onnx"
            options = ExportOptions(path, deform_conv="gathernd", raw_outputs=kind == "raw", img_shape=None)
            write_detector(model, images, options, dynamic=False, metadata={})
            with torch.no_grad():
                outputs = torch.utils._pytree.tree_leaves(model(images))
            names = model.names(images) if kind == "raw" else model.output_names
            values = dict(zip(names, (value.numpy() for value in outputs), strict=True))
            np.savez(path.with_suffix(".npz"), input=images.numpy(), **values)
            if kind == "raw":
                program = torch.export.export(model.eval(), (images,)).run_decompositions(decompositions())
                torch.export.save(program, path.with_suffix(".pt2"))
        print(f"{name}: written", flush=True)


def build(name: str):
    """A small detector of a family with deformable layers, and a picture that it detects objects in."""
    import torch
    from mmdet.registry import MODELS

    from tests.export import detectors

    generator = torch.Generator().manual_seed(1)
    if name == "RTMDet":
        family = detectors.Family("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", detectors.RTMDET)
        detectors.CONFIGS.setdefault(name, family)
    if not detectors.CONFIGS[name].resnet:  # YOLOX: deformable layers in its own backbone
        cfg = detectors.config(name)
        cfg.backbone.update(to_deformable=dict(where="stage3.*.conv2*", kind="v2"))
        torch.manual_seed(0)
        detector = MODELS.build(cfg).eval()
        detectors.calibrate(detector, torch.randn(2, 3, *detectors.size(name)))
    else:
        detector = detectors.build(name, dcn=True)
    assert any("conv_offset" in parameter for parameter, _ in detector.named_parameters()), name
    return detector, torch.randn(1, 3, *detectors.size(name), generator=generator)


def run(runtime: str, folder: Path) -> None:
    """Run the files of a folder in a runtime, and write the rows."""
    rows = []
    for path in sorted(folder.glob("*_*.npz")):
        name, _, kind = path.stem.rpartition("_")
        wanted = "complete" if runtime in COMPLETE else "raw"
        if kind != wanted:
            continue
        expected = dict(np.load(path))
        image = expected.pop("input")
        row = {"detector": FILES[name], "runtime": runtime, "outputs": kind}
        try:
            outputs = RUN[runtime](path.with_suffix(""), image, list(expected))
            row |= difference(outputs, expected)
        except Exception as error:  # of any kind: the cell names it
            row["error"] = " ".join(str(error).split())[:300]
        rows.append(row)
        print(row, flush=True)
    versions = {package: version(package) for package in RUNTIMES[runtime]}
    content = {"versions": versions, "machine": platform.processor() or platform.machine(), "rows": rows}
    (folder / f"{runtime}.json").write_text(json.dumps(content, indent=1))


def difference(outputs: Outputs, expected: Outputs) -> dict:
    """Compare outputs by name; those of complete files as detections."""
    if "dets" not in expected:
        errors = {}
        for name, value in expected.items():
            other = outputs[name].reshape(value.shape).astype(np.float64)
            errors[name] = float(np.abs(other - value).max() / max(np.abs(value).max(), 1e-12))
        return {"difference": max(errors.values())}
    size = expected["masks"].shape[2:] if "masks" in expected else None
    result = {"matched": 0, "number": int((expected["labels"][0] >= 0).sum())}
    boxes, labels = outputs["dets"].reshape(-1, 5), outputs["labels"].reshape(-1)
    worst, unmatched = 0.0, set(np.flatnonzero(labels >= 0).tolist())
    limit = float(np.abs(expected["dets"]).max())
    for i in np.flatnonzero(expected["labels"][0] >= 0):
        same = [j for j in unmatched if labels[j] == expected["labels"][0, i]]
        errors = {j: float(np.abs(boxes[j] - expected["dets"][0, i]).max()) / limit for j in same}
        best = min(errors, key=errors.get, default=None)
        if best is None or errors[best] > 1e-3:
            continue
        if size and not same_mask(outputs, expected, best, int(i)):
            continue
        unmatched.remove(best)
        result["matched"] += 1
        worst = max(worst, errors[best])
    return result | {"difference": worst}


def same_mask(outputs: Outputs, expected: Outputs, j: int, i: int) -> bool:
    """Whether both masks, in the input and in the box, differ by less than 1 % of 255 and of 1."""
    for name, scale in (("masks", 255), ("box_masks", 1)):
        if name in expected:
            mask = outputs[name].reshape(expected[name].shape)[0, j].astype(np.float64)
            if np.abs(mask - expected[name][0, i]).mean() > 0.01 * scale:
                return False
    return True


def run_mnn(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    import _tools  # MNN.tools.mnnconvert would install a package that reports each conversion
    import MNN.expr
    import MNN.nn

    file = f"{path}.mnn"
    _tools.mnnconvert(["", "-f", "ONNX", "--modelFile", f"{path}.onnx", "--MNNModel", file, "--bizCode", "_"])
    module = MNN.nn.load_module_from_file(file, ["input"], names)
    values = module.forward([MNN.expr.const(image, list(image.shape), MNN.expr.NCHW, MNN.expr.float)])
    return {name: np.array(value.read()) for name, value in zip(names, values, strict=True)}


def run_litert(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    import subprocess

    from ai_edge_litert.interpreter import Interpreter

    folder = path.with_name(f"{path.name}_litert")
    command = [Path(sys.executable).with_name("onnx2tf"), "-i", f"{path}.onnx", "-o", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(folder.glob("*float32.tflite"))
    if not files:
        raise ValueError(f"onnx2tf: {(done.stdout + done.stderr).strip()[-300:]}")
    interpreter = Interpreter(str(files[0]))
    interpreter.allocate_tensors()
    (place,) = interpreter.get_input_details()
    interpreter.set_tensor(place["index"], image.transpose(0, 2, 3, 1))  # channels last
    interpreter.invoke()
    outputs = {}
    for each in interpreter.get_output_details():
        value = interpreter.get_tensor(each["index"])
        if value.ndim == 4 and each["name"] not in ("masks", "box_masks"):
            value = value.transpose(0, 3, 1, 2)
        outputs[each["name"]] = value
    return outputs


def run_tract(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    import tract

    model = tract.onnx().load(f"{path}.onnx").into_model().into_runnable()
    values = model.run([image])
    return {name: value.to_numpy() for name, value in zip(names, values, strict=True)}


def run_executorch(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    import torch
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    program = to_edge(torch.export.load(f"{path}.pt2")).to_executorch()
    Path(f"{path}.pte").write_bytes(program.buffer)
    method = Runtime.get().load_program(f"{path}.pte").load_method("forward")
    values = method.execute([torch.from_numpy(image)])
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


RUN: dict[str, Callable[[Path, np.ndarray, list[str]], Outputs]] = {
    "mnn": run_mnn,
    "litert": run_litert,
    "executorch": run_executorch,
    "tract": run_tract,
}


def table(folder: Path) -> Iterator[str]:
    """Yield the lines of the table: a row per detector, a column per runtime."""
    contents = {name: json.loads((folder / f"{name}.json").read_text()) for name in RUNTIMES}
    cells = {(row["runtime"], row["detector"]): row for each in contents.values() for row in each["rows"]}
    heads = [f"{name} {' '.join(each['versions'].values())}" for name, each in contents.items()]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---{'|---' * len(heads)}|"
    for detector in DETECTORS:
        yield f"| {detector} | {' | '.join(cell(cells.get((name, detector))) for name in contents)} |"


def cell(row: dict | None) -> str:
    if row is None:
        return "–"
    if "error" in row:
        return f"no: {row['error'][:80]}"
    text = f"{row['difference']:.0e}, {row['outputs']}"
    return text if "matched" not in row else f"{text}, {row['matched']} of {row['number']}"


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "make":
        make(Path(arguments[0]), arguments[1:])
    elif task == "run":
        run(arguments[0], Path(arguments[1]))
    else:
        page = Path(arguments[1])
        head, _, _ = page.read_text().partition(MARK)
        page.write_text(head + MARK + "\n\n" + "\n".join(table(Path(arguments[0]))) + "\n")
