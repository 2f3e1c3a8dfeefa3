"""Changes during and after the import of other packages. The tests write these packages."""

import json
import sys
from importlib import import_module

import numpy as np
import pycocotools._mask
import pytest
import torch

from dcnzoo.compat import after_import
from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.patches import other_packages


def test_a_version_is_claimed_during_the_import_alone(package):
    package("picky.__init__", "import json\nseen = json.__version__")
    version = json.__version__
    with Changes() as changes:
        other_packages.while_imported("picky", "json", "__version__", "0.0.1")(changes)
        assert import_module("picky").seen == "0.0.1" and json.__version__ == version
        del sys.modules["picky"]
    assert import_module("picky").seen == version


def test_a_failed_import_leaves_nothing_changed(package):
    package("picky.__init__", "import json\nassert json.__version__ != '0.0.1', 'refused'")
    version = json.__version__
    with Changes() as changes:
        other_packages.while_imported("picky", "json", "__version__", "0.0.1")(changes)
        with pytest.raises(AssertionError, match="refused"):
            import_module("picky")
        assert json.__version__ == version


def test_names_of_numpy_1(package):
    package("imgaug.__init__", "import numpy as np\nfound = np.sctypes['float'], np.int0(3), np.bool8(1)")
    absent = [name for name in other_packages.NUMPY_1 if name not in vars(np)]
    assert absent, "numpy has them again"
    with Changes() as changes:
        other_packages.numpy_1_names(changes)
        floats, three, true = import_module("imgaug").found
        assert np.float64 in floats and three == 3 and three.dtype == np.intp and true.dtype == bool
    assert not any(name in vars(np) for name in absent)


@pytest.mark.parametrize("loads", [True, False])
def test_xtcocotools_has_a_mask_module(package, loads):
    own = "own = True" if loads else "raise ValueError('numpy.dtype size changed')"
    package("xtcocotools._mask", own)
    package("xtcocotools.mask", "import xtcocotools._mask as _mask")
    with Changes() as changes:
        other_packages.xtcocotools_mask(changes)
        found = import_module("xtcocotools.mask")._mask
        assert hasattr(found, "own") if loads else found is pycocotools._mask


def test_call_is_for_modules_that_are_imported_and_for_others(package):
    package("late.__init__", "ready = True")
    called = []
    undo = after_import.call("late", lambda module: called.append(module.ready))
    after_import.call("json", lambda module: called.append(module.__name__))
    assert called == ["json"]
    import_module("late")
    assert called == ["json", True]
    undo()
    del sys.modules["late"]
    import_module("late")
    assert called == ["json", True]


def test_a_training_beside_a_torchvision_that_does_not_load():
    """MMEngine imports it when a training begins, and expects it to load or to be missing."""
    import_module("dcnzoo.models")
    from mmengine.utils.dl_utils import collect_env

    assert collect_env()["PyTorch"] == torch.__version__
