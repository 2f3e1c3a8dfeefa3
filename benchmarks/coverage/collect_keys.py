"""Write the keys of train_cfg and test_cfg, which code reads one by one, for dcnzoo's check of configs.

``python benchmarks/coverage/collect_keys.py`` reads about 900 configs of MMDetection and of the zoo in a
minute, and MMDetection's code, and writes ``dcnzoo/openmmlab/config/known_keys.json``.
"""

import datetime
import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mmdet

from dcnzoo.openmmlab.config import rules, tree
from dcnzoo.openmmlab.runs import recipe
from dcnzoo.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(mmdet.__file__).parent
CONFIGS = (FOLDER / ".mim" / "configs", ROOT / "configs")
READ = re.compile(
    r"""(?:train|test|rcnn|rpn|proposal)?_?cfg(?:\.get\(|\.pop\(|\[|,\ |\.)\s*['"]?([a-z]\w+)|"""
    r"""['"]([a-z]\w+)['"]\ (?:not\ )?in\ [\w.]*cfg\b""",
    re.VERBOSE,
)


def main() -> None:
    keys, number = set(keys_read()), 0
    for path in sorted(path for folder in CONFIGS for path in folder.rglob("*.py")):
        with suppress(UserError, FileNotFoundError):  # packages that are not installed, missing bases
            cfg = recipe.read_config_file(path)
            number += 1
            for node in tree.nodes(cfg):
                if rules.reads_settings(node):
                    keys |= node.content.keys()
    rows = textwrap.wrap(" ".join(sorted(keys)), 115)
    table = {"date": str(datetime.date.today()), "mmdet": mmdet.__version__, "configs": number, "keys": rows}
    (ROOT / "dcnzoo/openmmlab/config/known_keys.json").write_text(json.dumps(table, indent=0) + "\n")


def keys_read() -> Iterator[str]:
    for file in (FOLDER / "models").rglob("*.py"):
        for match in READ.findall(file.read_text(encoding="utf-8")):
            yield from filter(None, match)


if __name__ == "__main__":
    main()
