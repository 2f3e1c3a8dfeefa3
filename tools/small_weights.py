"""Make the weights from which ``dcnzoo train --data`` starts on a CPU: half an hour on one core.

The model of configs/small learns generated shapes. Its weights are written to configs/small/weights in half
precision, which loading converts; its metafile names the file.
"""

import hashlib
import sys
from pathlib import Path

import dcnzoo
from dcnzoo.openmmlab.checkpoints import load_file, to_safetensors
from dcnzoo.openmmlab.saved import last_checkpoint
from dcnzoo.openmmlab.weights import find_weights
from dcnzoo.utils.files import write_bytes
from dcnzoo.zoo.config_writer import SMALL_MASKS

SMALL = Path(__file__).parents[1] / "configs" / "small"


def main(work_dir: str = "work_dirs/small") -> None:
    folder = dcnzoo.train(SMALL / f"{SMALL_MASKS}.py", work_dir=work_dir, force=True, seed=0)
    checkpoint = load_file(last_checkpoint(folder))
    weights = {
        # vectors, such as a norm's statistics, take no space and stay as they are
        name: value.half() if value.dim() > 1 else value
        for name, value in find_weights(checkpoint, folder).items()
    }
    content = to_safetensors(weights, checkpoint["meta"])
    name = f"{SMALL_MASKS}-{hashlib.sha256(content).hexdigest()[:8]}.safetensors"
    write_bytes(SMALL / "weights" / name, content)
    print(SMALL / "weights" / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
