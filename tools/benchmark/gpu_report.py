"""Write report.md from whatever results of ``make gpu`` there are."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from journal import results
from sections import markdown

from dcnzoo.utils.files import write_text

HALF = ("bfloat16", "float16")


def write(out: Path, facts: Mapping[str, object], words: Mapping[str, str], rehearsal: bool) -> Path:
    title = "Rehearsal without a GPU: these times mean nothing" if rehearsal else f"GPU: {facts['gpu']}"
    parts = [f"# {title}", ", ".join(f"{name} {value}" for name, value in facts.items())]
    parts += [markdown([["part", "result"], *words.items()])]
    for heading, make in SECTIONS.items():
        text = make(out)
        if text:
            parts += [f"## {heading}", text]
    path = out / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    print(f"written: {path}", flush=True)
    return path


def tests(out: Path) -> str:
    found = results(out / "correctness.jsonl")
    counts = Counter(result.get("outcome", "crashed") for _, result in found)
    text = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    bad = [[job["test"], result["problem"]] for job, result in found if _is_bad(result)]
    return text + (f"\n\n{markdown([['test', 'problem'], *bad])}" if bad else "")


def _is_bad(result: dict) -> bool:
    return "problem" in result and result.get("outcome") != "skipped"


def tuning(out: Path) -> str:
    checked = results(out / "tuning.jsonl", step="check")
    timed = results(out / "tuning.jsonl", step="time")
    if not checked:
        return ""
    fastest: dict[tuple, tuple[float, list]] = {}
    for job, result in timed:
        place = (job["kernel"], job["kind"], job["map"])
        if "us" in result and result["us"] < fastest.get(place, (float("inf"), []))[0]:
            fastest[place] = result["us"], job["config"]
    rows = [["kernel", "type", "map", "fastest", "µs"]]
    rows += [[*place, config, f"{us:.0f}"] for place, (us, config) in fastest.items()]
    bad = [
        [job["kernel"], job["kind"], job["config"], result["problem"]]
        for job, result in checked
        if "problem" in result
    ]
    text = f"{len(checked) - len(bad)} of {len(checked)} candidates are correct.\n\n{markdown(rows)}"
    return text + (f"\n\n{markdown([['kernel', 'type', 'candidate', 'problem'], *bad])}" if bad else "")


def goals(out: Path) -> str:
    """The figures that have goals, and some beside them: medians over the cases, and the worst case."""
    times = {
        (job["family"], job["case"], job["dtype"], job["mode"], job["contestant"]): result
        for job, result in results(out / "benchmark.jsonl")
    }
    if not times:
        return ""
    forward, both = "forward", "forward+backward"
    ours, cudnn = ("fused NCHW", "fused NHWC"), ("cuDNN NCHW", "cuDNN NHWC")
    compiled, rival = ("compiled NCHW", "compiled NHWC"), ("torchvision NCHW",)
    rows = [["figure", "type", "goal", "median", "worst", "cases"]]

    def add(figure: str, goal: str, family: str, mode: str, dtypes, above, below, value: str = "us") -> None:
        for dtype in dtypes:
            ratios = list(_ratios(times, family, mode, dtype, above, below, value))
            if ratios:
                worst = max(ratios) if goal.startswith("≤") else min(ratios)
                cells = [f"{statistics.median(ratios):.2f}", f"{worst:.2f}", len(ratios)]
                rows.append([figure, dtype, goal, *cells])

    conv = "deform_conv2d"
    add("fused forward / cuDNN", "≤ 2.0", conv, forward, HALF, ours, cudnn)
    add("fused forward+backward / cuDNN", "≤ 4", conv, both, HALF, ours, cudnn)
    add("compiled forward / cuDNN", "–", conv, forward, HALF, compiled, cudnn)
    add("compiled forward+backward / cuDNN", "–", conv, both, HALF, compiled, cudnn)
    some = ("float16", "float32")
    add("torchvision / fused, forward", "≥ 2.5 (float16)", conv, forward, some, rival, ours)
    add("torchvision / fused, forward+backward", "≥ 4 (float16)", conv, both, some, rival, ours)
    add("torchvision / compiled, forward", "–", conv, forward, some, rival, compiled)
    memory = "peak memory, forward+backward, fused / torchvision"
    add(memory, "≤ 0.5", conv, both, some, ours, rival, "bytes")
    every = (*HALF, "float32")
    for family, name in (
        ("dcnv4", "formula in torch / DCNv4"),
        ("dcnv3", "formula in torch / DCNv3"),
        ("ms_deform_attn", "formula in torch (transformers' eager path) / MSDA"),
    ):
        goal = "–" if family == "dcnv3" else "≥ 8"
        for mode in (forward, both):
            add(f"{name}, {mode}", goal, family, mode, every, ("torch",), ("compiled",))
    for _, result in results(out / "training.jsonl", step="time"):
        if "ratio" in result:
            cells = [f"{result['ratio']:.2f}", f"{result['ratio']:.2f}", 1]
            rows.append(["training step, R-50 mdconv, dcn on / off", "bfloat16", "≤ 1.15", *cells])
    return markdown(rows)


def _ratios(times, family, mode, dtype, above, below, value) -> Iterator[float]:
    """Yield, for each case, the best value of ``above`` divided by the best value of ``below``."""
    cases = dict.fromkeys(case for f, case, d, m, _ in times if (f, d, m) == (family, dtype, mode))
    for case in cases:
        best = []
        for names in (above, below):
            found = (times.get((family, case, dtype, mode, name), {}).get(value) for name in names)
            best.append(min((v for v in found if v is not None), default=None))
        if all(best):
            yield best[0] / best[1]


def benchmark(out: Path) -> str:
    rows = [["family", "case", "type", "pass", "contestant", "µs", "IQR", "predicted µs", "MiB", "error"]]
    for job, result in results(out / "benchmark.jsonl"):
        place = [job["family"], job["case"], job["dtype"], job["mode"], job["contestant"]]
        if "problem" in result:
            rows.append([*place, result["problem"], "", "", "", ""])
            continue
        low, high = result.get("model_us", (None, None))
        predicted = "" if low is None else f"{low:.0f}–{high:.0f}"
        graph = "" if result["graph"] else " (no graph)"
        rows.append(
            [
                *place,
                f"{result['us']:.0f}{graph}",
                f"{result['spread']:.0%}",
                predicted,
                f"{result['bytes'] / 2**20:.0f}" if "bytes" in result else "",
                f"{result['error']:.1e}" if "error" in result else "",
            ]
        )
    return markdown(rows) if len(rows) > 1 else ""


def profile(out: Path) -> str:
    names = ("us", "count", "memory_bytes", "l2_bytes", "instructions", "registers", "occupancy_percent")
    rows = [["case", "contestant", "by", "kernel", *names]]
    for job, result in results(out / "profile.jsonl"):
        place = [job["case"], job["contestant"], job["by"]]
        if "problem" in result:
            rows.append([*place, result["problem"], *[""] * len(names)])
        for kernel in result.get("kernels", ()):
            cells = ["" if kernel.get(name) is None else f"{kernel[name]:.4g}" for name in names]
            rows.append([*place, kernel["kernel"][:60], *cells])
    return markdown(rows) if len(rows) > 1 else ""


def training(out: Path) -> str:
    rows = [["step", "figure", "value"]]
    for job, result in results(out / "training.jsonl"):
        rows += [[job["step"], name, value] for name, value in result.items()]
    return markdown(rows) if len(rows) > 1 else ""


SECTIONS: dict[str, Callable[[Path], str]] = {
    "Goals": goals,
    "Tests": tests,
    "Training": training,
    "Profile: forward and backward, bfloat16": profile,
    "Block sizes": tuning,
    "Times": benchmark,
}
