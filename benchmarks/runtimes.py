"""Compare exported detectors in runtimes of phones and boards with PyTorch (``nox -s runtimes``).

    python -m benchmarks.runtimes make FOLDER   # files and expected outputs; needs OpenMMLab
    python -m benchmarks.runtimes run RUNTIME FOLDER   # in the environment of a runtime: FOLDER/RUNTIME.json
    python -m benchmarks.runtimes table FOLDER PAGE    # all rows as Markdown, into the page; then check them

The runtimes run the code of docs/runtimes. The difference is the largest one of an output, relative to its
largest value; for complete files, it compares boxes and scores of detections with equal labels.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SHIPPED = "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts"  # of the zoo, in each wheel
DETECTORS = ("FCOS", "RetinaNet", "YOLOX", "Mask R-CNN", SHIPPED, "Deformable DETR")
FILES = {name.replace(" ", "-"): name for name in DETECTORS}
RUNTIMES = {  # the packages whose versions are named
    "mnn": ("MNN",),
    "litert": ("ai-edge-litert", "onnx2tf"),
    "ncnn": ("ncnn", "pnnx"),
    "executorch": ("executorch",),
    "tract": ("tract",),
}
LARGEST, LEAST = 1e-4, 0.99  # difference of an output; share of the detections that match
# complete files that these runtimes refuse, as the page shows: their NMS, or sizes that depend on the data
TWO_STAGES = {"Mask R-CNN", SHIPPED}
REFUSED = {
    "litert": TWO_STAGES | {"Deformable DETR"},
    "ncnn": TWO_STAGES | {"Deformable DETR"},
    "executorch": TWO_STAGES,
    "tract": TWO_STAGES | {"Deformable DETR"},
}
COMPLETE = "mnn"  # runs complete files, with NMS; the others run raw outputs if a detector has them
Outputs = dict[str, np.ndarray]


def make(folder: Path) -> None:
    """Write each detector as ONNX and as a program of torch, with an input and PyTorch's outputs."""
    import torch

    from dcnzoo.export import for_pnnx
    from dcnzoo.export.options import ExportOptions
    from dcnzoo.openmmlab.export.export import write_detector
    from dcnzoo.openmmlab.export.predict import Predictor, RawHead

    for name in DETECTORS:
        detector, images = build(name)
        kinds = {"complete": Predictor(detector, sized=False)}
        if hasattr(getattr(detector, "bbox_head", None), "prior_generator"):
            kinds["raw"] = RawHead(detector)
        for kind, model in kinds.items():
            path = folder / f"{name.replace(' ', '-')}_{kind}.onnx"
            options = ExportOptions(
                path, deform_conv="gathernd", raw_outputs=kind == "raw", img_shape=None, force=True
            )
            write_detector(model, images, options, dynamic=False, metadata={})
            with torch.no_grad():
                outputs = torch.utils._pytree.tree_leaves(model(images))
            names = model.names(images) if kind == "raw" else model.output_names
            values = dict(zip(names, (value.numpy() for value in outputs), strict=True))
            np.savez(path.with_suffix(".npz"), input=images.numpy(), **values)
            if kind == "raw":
                torch.jit.trace(for_pnnx(model), images).save(path.with_suffix(".pt"))


def build(name: str):
    """Return a small detector with deformable layers, and a picture in which it detects objects."""
    import torch
    from mmdet.registry import MODELS

    from tests.helpers import detectors

    if name == SHIPPED:
        return shipped()
    generator = torch.Generator().manual_seed(1)
    if not detectors.CONFIGS[name].resnet:  # YOLOX: deformable layers in its own backbone
        cfg = detectors.config(name)
        cfg.backbone.update(to_deformable=dict(where="stage3.*.conv2*", kind="v2"))
        torch.manual_seed(0)
        detector = MODELS.build(cfg).eval()
        detectors.calibrate(detector, torch.randn(2, 3, *detectors.size(name)))
    else:
        detector = detectors.build(name, dcn=True)
    return detector, torch.randn(1, 3, *detectors.size(name), generator=generator)


def shipped():
    """Return the detector of the zoo, and the picture of ``dcnzoo export --verify``."""
    from mmdet.utils import get_test_pipeline_cfg
    from mmengine.dataset import pseudo_collate

    import dcnzoo
    from dcnzoo.openmmlab.export.pictures import pictures_to_verify
    from dcnzoo.openmmlab.export.preprocessing import preprocessing_of

    detector = dcnzoo.load(SHIPPED, device="cpu")
    network = detector.model
    preprocessing = preprocessing_of(get_test_pipeline_cfg(network.cfg), network.data_preprocessor, ())
    picture = pictures_to_verify(True, preprocessing)[0]
    return network, network.data_preprocessor(pseudo_collate([detector.prepare(picture)]), False)["inputs"]


def run(runtime: str, folder: Path) -> None:
    """Run the files of a folder in a runtime, and write the rows."""
    rows = []
    for path in sorted(folder.glob("*_*.npz")):
        name, _, kind = path.stem.rpartition("_")
        has_raw = path.with_name(f"{name}_raw.npz").exists()
        if (kind == "complete") != (runtime == COMPLETE or not has_raw):
            continue
        expected = dict(np.load(path))
        image = expected.pop("input")
        row = {"detector": FILES[name], "runtime": runtime, "outputs": kind}
        try:
            outputs = RUN[runtime](path.with_suffix(""), image, list(expected))
            compare = difference_of_detections if "dets" in expected else difference
            row |= compare(outputs, expected)
        except Exception as error:  # any error: the cell of the table shows it
            row["error"] = " ".join(str(error).split())[:300]
        rows.append(row)
        print(row, flush=True)
        content = {"versions": {package: version(package) for package in RUNTIMES[runtime]}, "rows": rows}
        (folder / f"{runtime}.json").write_text(json.dumps(content, indent=1))


def difference(outputs: Outputs, expected: Outputs) -> dict:
    """Compare raw outputs by name."""
    errors = []
    for name, value in expected.items():
        other = outputs[name].reshape(value.shape).astype(np.float64)
        errors.append(float(np.abs(other - value).max() / max(np.abs(value).max(), 1e-12)))
    return {"difference": max(errors)}


def difference_of_detections(outputs: Outputs, expected: Outputs) -> dict:
    """Match each expected detection with the nearest one of its label."""
    boxes, labels = outputs["dets"].reshape(-1, 5), outputs["labels"].reshape(-1)
    expected_boxes, expected_labels = expected["dets"][0], expected["labels"][0]
    masks = expected.get("box_masks")
    limit = np.abs(expected_boxes).max()
    numbers = np.flatnonzero(expected_labels >= 0)
    unmatched, matched = set(np.flatnonzero(labels >= 0).tolist()), []
    for i in numbers:
        same = [j for j in unmatched if labels[j] == expected_labels[i]]
        errors = {j: float(np.abs(boxes[j] - expected_boxes[i]).max() / limit) for j in same}
        best = min(errors, key=errors.get, default=None)
        if best is None or errors[best] > 1e-3:
            continue
        if masks is not None:
            mask = outputs["box_masks"].reshape(masks.shape)[0, best]
            if np.abs(mask - masks[0, i]).mean() > 0.01:
                continue
        unmatched.remove(best)
        matched.append(errors[best])
    return {"matched": len(matched), "number": len(numbers), "difference": max(matched, default=0.0)}


def block(word: str, path: Path) -> str:
    """Return the block of docs/runtimes that contains a word, for the files of a detector."""
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs/runtimes").glob("*.md")))
    blocks = re.findall(r"^```(?:python|bash)\n(.*?)^```$", pages, re.M | re.S)
    code = next(code for code in blocks if word in code)
    return re.sub(r"\b(?:model|raw)(?=\.(?:mnn|onnx|pt|pte|ncnn)\b)", str(path), code)


def run_block(word: str, path: Path, image: np.ndarray, names: list[str], **more) -> Outputs:
    scope = {"image": image, "names": names, **more}
    exec(block(word, path), scope)
    kinds = {"Var": "read", "Tensor": "numpy"}  # of MNN and of torch
    arrays = [getattr(value, kinds.get(type(value).__name__, "view"))() for value in scope["values"]]
    return {name: np.array(array) for name, array in zip(names, arrays, strict=True)}


def run_litert(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    from ai_edge_litert.interpreter import Interpreter

    folder = path.with_name(f"{path.name}_litert")
    command = block("onnx2tf", path).replace("-o litert", f"-o {folder}")
    path_of_this_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path_of_this_python}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
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
        outputs[each["name"]] = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
    return outputs


def run_ncnn(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    program = Path(find_spec("pnnx").origin).with_name("pnnx")
    command = re.sub(
        r"inputshape=\S+", f"inputshape=[{','.join(map(str, image.shape))}]", block("pnnx raw", path)
    )
    subprocess.run(command.replace("pnnx", str(program), 1), shell=True, check=True, capture_output=True)
    return run_block("import ncnn", path, image, names)


def run_executorch(path: Path, image: np.ndarray, names: list[str]) -> Outputs:
    from dcnzoo.openmmlab.export.predict import Predictor, RawHead

    name, _, kind = path.name.rpartition("_")
    detector, _ = build(FILES[name])
    model = RawHead(detector) if kind == "raw" else Predictor(detector, sized=False)
    return run_block("executorch", path, image, names, model=model)


RUN: dict[str, Callable[[Path, np.ndarray, list[str]], Outputs]] = {
    "mnn": partial(run_block, "import MNN"),
    "litert": run_litert,
    "ncnn": run_ncnn,
    "executorch": run_executorch,
    "tract": partial(run_block, "import tract"),
}


def read(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in RUNTIMES}


def problems(contents: dict[str, dict]) -> Iterator[str]:
    """Yield a line for each missing or wrong result, except for those of :data:`REFUSED`."""
    for runtime, content in contents.items():
        rows = {row["detector"]: row for row in content["rows"]}
        for detector in DETECTORS:
            row = rows.get(detector, {"error": "no result"})
            if "error" in row:
                wrong = detector not in REFUSED.get(runtime, ())
            else:
                matched = row.get("matched", 1) / row.get("number", 1)
                wrong = not (row["difference"] <= LARGEST and matched >= LEAST)  # also NaN
            if wrong:
                yield f"{runtime}: {detector}: {cell(row)}"


def table(contents: dict[str, dict]) -> Iterator[list[str]]:
    """Yield the head of the table, with a column per runtime, and a row per detector."""
    cells = {(row["runtime"], row["detector"]): row for each in contents.values() for row in each["rows"]}
    yield ["", *(f"{name} {' '.join(each['versions'].values())}" for name, each in contents.items())]
    for detector in DETECTORS:
        yield [detector, *(cell(cells.get((name, detector))) for name in contents)]


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
        make(Path(arguments[0]))
    elif task == "run":
        run(arguments[0], Path(arguments[1]))
    else:
        from benchmarks.measure import markdown, replace_section  # the runtimes have no torch

        contents = read(Path(arguments[0]))
        replace_section(Path(arguments[1]), "runtimes", markdown(table(contents)))
        sys.exit("\n".join(problems(contents)) or None)
