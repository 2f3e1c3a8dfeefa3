"""A package with configs and a metafile for tests."""

from pathlib import Path

import pytest
import yaml

from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import index


def entry(name="net_1x", **changes):
    metrics = {"Task": "Object Detection", "Dataset": "COCO", "Metrics": {"box AP": 40.0}}
    return {
        "Name": name,
        "In Collection": "Paper",
        "Config": f"configs/paper/{name}.py",
        "Results": [metrics],
        **changes,
    }


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes entries and their configs into a package that replaces dcnzoo in the index."""
    folder = tmp_path / ".mim" / "configs" / "paper"
    folder.mkdir(parents=True)
    mmdet = mim_folder("mmdet")
    monkeypatch.setattr(index, "mim_folder", lambda name: mmdet if name == "mmdet" else tmp_path / ".mim")
    caches = (index.models, index._models_of)

    def write(*entries):
        for entry in entries:
            config = folder / Path(entry["Config"]).name
            config.write_text(entry.pop("text", "model = dict()"))
        content = {"Collections": [{"Name": "Paper", "Paper": {"Title": "T"}}], "Models": list(entries)}
        (folder / "metafile.yml").write_text(yaml.safe_dump(content))
        for cache in caches:
            cache.cache_clear()
        return [m for m in index.models() if m.package == "dcnzoo"]

    yield write
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """No mirror, offline mode or proxy from the environment."""
    for name in ("DCNZOO_MIRROR", "DCNZOO_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
