"""Make a checkpoint to publish: ``python tools/model_converters/publish_model.py IN OUT``.

Keeps the weights and what is known about them, not the optimizer, and puts the first digits of the
file's SHA-256 at the end of its name, where `dcnzoo zoo verify` and every download look for them.
"""

import argparse
import hashlib
import io
from pathlib import Path

import torch

from dcnzoo.openmmlab.hooks.checkpoint import seal
from dcnzoo.openmmlab.weights import load_file
from dcnzoo.utils.errors import UserError, command
from dcnzoo.utils.files import require_file, write_bytes

DIGITS = 8


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("in_file", help="checkpoint of a training")
    parser.add_argument("out_file", help="name without the digits: x.pth becomes x-1a2b3c4d.pth")
    parser.add_argument(
        "--save-keys", nargs="+", default=["meta", "state_dict"], help="default: meta state_dict"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a checkpoint that holds more than weights, which runs whatever code is in it",
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    require_file(args.in_file, "checkpoint")
    checkpoint = load_file(args.in_file, args.trust)
    if "state_dict" not in checkpoint or "state_dict" not in args.save_keys:
        raise UserError(f"{args.in_file}: expected a state_dict, in the file and in --save-keys")
    removed = sorted(set(map(str, checkpoint)) - set(args.save_keys))
    buffer = io.BytesIO()  # saved to a file, its name would be in it
    torch.save({key: checkpoint[key] for key in args.save_keys if key in checkpoint}, buffer)
    content = seal(buffer.getvalue())  # as it will be in the file
    digits = hashlib.sha256(content).hexdigest()[:DIGITS]
    out = Path(args.out_file)
    out = out.with_name(f"{out.name.removesuffix('.pth')}-{digits}.pth")
    write_bytes(out, content)
    print(f"left out: {', '.join(removed) or 'nothing'}")
    print(out)


if __name__ == "__main__":
    main()
