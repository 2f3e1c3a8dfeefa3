"""Write the keys that the configs of MMDetection and of the zoo set, for dcnzoo's check of configs.

``python benchmarks/coverage/collect_keys.py`` reads about 900 configs in a minute and writes
``dcnzoo/openmmlab/settings.json``: class → path in its dictionary → keys that its signature does not have.
"""

import datetime
import json
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import mmdet

from dcnzoo.openmmlab import runner, settings
from dcnzoo.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FREE = re.compile(r"\b(custom_keys|caption_prompt)\b")  # their keys are names that the user chooses
CONFIGS = (Path(mmdet.__file__).parent / ".mim" / "configs", ROOT / "configs")


def main() -> None:
    keys: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    number = 0
    for path in sorted(path for folder in CONFIGS for path in folder.rglob("*.py")):
        with suppress(UserError, FileNotFoundError):  # packages that are not installed, missing bases
            cfg = runner.read_config_file(path)
            number += 1
            for place in settings.places(cfg):
                name = getattr(place.kind, "__name__", "")
                keys[name][place.inner] |= (
                    place.node.keys() - place.arguments()[0].keys() - settings.ANY_MODULE
                )
    table = {
        name: {
            inner: sorted(each) for inner, each in sorted(inners.items()) if each and not FREE.search(inner)
        }
        for name, inners in sorted(keys.items())
        if any(inners.values())
    }
    head = f'"date": "{datetime.date.today()}", "mmdet": "{mmdet.__version__}", "configs": {number}'
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(inners)}" for name, inners in table.items())
    (ROOT / "dcnzoo/openmmlab/settings.json").write_text(f'{{{head}, "keys": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
