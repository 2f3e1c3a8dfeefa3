"""Write the keys that the configs of MMDetection and of the zoo set, for dcnzoo's check of configs.

``python benchmarks/coverage/collect_keys.py`` reads about 900 configs in a minute and writes
``dcnzoo/openmmlab/known_keys.json``: class → path in its dictionary → keys that no signature has, and the
keys that MMDetection's code reads from dictionaries of settings. A class is the most general one that has the
argument: ``test_cfg`` of a Mask R-CNN is a row of TwoStageDetector.
"""

import datetime
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mmdet

from dcnzoo.openmmlab import known_keys, recipe
from dcnzoo.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(mmdet.__file__).parent
CONFIGS = (FOLDER / ".mim" / "configs", ROOT / "configs")
# dictionaries whose keys are names that the user or another package chooses, and settings of layers
FREE = {
    "Albu",
    "backend_args",
    "custom_keys",
    "caption_prompt",
    "path_mapping",
    "default_hooks",
    *known_keys.LAYER_SETTINGS,
}
READ = re.compile(
    r"""(?:train|test|rcnn|rpn|proposal)?_?cfg(?:\.get\(|\.pop\(|\[|,\ |\.)\s*['"]?([a-z]\w+)|"""
    r"""['"]([a-z]\w+)['"]\ (?:not\ )?in\ [\w.]*cfg\b""",
    re.VERBOSE,
)


def main() -> None:
    keys: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    number = 0
    for path in sorted(path for folder in CONFIGS for path in folder.rglob("*.py")):
        with suppress(UserError, FileNotFoundError):  # packages that are not installed, missing bases
            cfg = recipe.read_config_file(path)
            number += 1
            for place in known_keys.places(cfg):
                if not FREE & {*place.path.split("."), *place.bases}:
                    new = place.node.keys() - place.arguments()[0].keys() - known_keys.ANY_MODULE
                    keys[owner(place)][place.inner] |= new
    table = {
        name: {inner: sorted(each) for inner, each in sorted(inners.items()) if each}
        for name, inners in sorted(keys.items())
        if any(inners.values())
    }
    head = f'"date": "{datetime.date.today()}", "mmdet": "{mmdet.__version__}", "configs": {number}'
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(inners)}" for name, inners in table.items())
    text = f'{{{head},\n"read": {json.dumps(sorted(set(keys_read())))},\n"keys": {{\n{rows}\n}}}}\n'
    (ROOT / "dcnzoo/openmmlab/known_keys.json").write_text(text)


def owner(place: known_keys.Place) -> str:
    """Return the name of the most general class that has the argument which contains the dictionary."""
    argument = place.inner.partition(".")[0]
    bases = [base for base in getattr(place.kind, "__mro__", ()) if base.__module__.startswith("mm")]
    owners = [base for base in bases if argument in inspect.signature(base).parameters]
    kinds = owners[-1:] if argument else [place.kind]
    return getattr(kinds[0] if kinds else place.kind, "__name__", "")


def keys_read() -> Iterator[str]:
    for file in (FOLDER / "models").rglob("*.py"):
        for match in READ.findall(file.read_text(encoding="utf-8")):
            yield from filter(None, match)


if __name__ == "__main__":
    main()
