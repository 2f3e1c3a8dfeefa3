"""Python's time of an eager call on small maps, beside another revision::

    python -m benchmarks.calls --against b579bb3f

The kernels take little of it: what counts are the function, autocast's and autograd's rules and the choice of
a kernel. Each revision runs in processes of its own, in turns; the least CPU time of all rounds is printed.
"""

import json
import os
import subprocess
import sys

from benchmarks.measure import ROOT, parser_of
from benchmarks.revision import checkout

CHILD = """
import json, time, timeit, torch
from dcnzoo.ops import deform_conv2d, ms_deform_attn
torch.set_num_threads(1)
x, weight, bias = torch.randn(1, 4, 5, 6), torch.randn(4, 4, 3, 3), torch.randn(4)
offset, mask = torch.randn(1, 18, 5, 6), torch.rand(1, 9, 5, 6)
value, shapes = torch.randn(1, 30, 2, 4), torch.tensor([[5, 6]])
starts, locations, weights = torch.tensor([0]), torch.rand(1, 3, 2, 1, 2, 2), torch.rand(1, 3, 2, 1, 2)
leaves = {name: t.clone().requires_grad_() for name, t in dict(x=x, offset=offset, value=value).items()}
calls = {
    "deform_conv2d": lambda: deform_conv2d(x, weight, offset, mask, bias, padding=1),
    "deform_conv2d, gradients": lambda: deform_conv2d(
        leaves["x"], weight, leaves["offset"], mask, bias, padding=1).sum().backward(),
    "ms_deform_attn": lambda: ms_deform_attn(value, shapes, starts, locations, weights),
    "ms_deform_attn, gradients": lambda: ms_deform_attn(
        leaves["value"], shapes, starts, locations, weights).sum().backward(),
}
repeat = lambda call: timeit.repeat(call, timer=time.process_time, number=500, repeat=9)
times = {name: min(repeat(call)) / 500 for name, call in calls.items()}
print(json.dumps({name: 1e6 * time for name, time in times.items()}))
"""


def main(revision: str, rounds: int) -> None:
    trees = {"now": ROOT, revision: checkout(revision)}
    times: dict[str, dict[str, float]] = {name: {} for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            environment = {**os.environ, "PYTHONPATH": str(tree)}
            command = (sys.executable, "-c", CHILD)
            output = subprocess.check_output(command, cwd=tree, env=environment, text=True)
            for call, time in json.loads(output).items():
                times[name][call] = min(time, times[name].get(call, time))
    for call, before in times[revision].items():
        now = times["now"][call]
        print(f"{call:26} {now:7.2f} µs, {revision} {before:7.2f} µs: {now / before:.3f}")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--against", default="b579bb3f", metavar="REVISION", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    main(arguments.against, arguments.rounds)
