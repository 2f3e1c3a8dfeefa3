import pytest

from dcnzoo.data.shapes import ShapesSpec, make_shapes

SPEC = ShapesSpec(train=6, val=4, size=96, min_radius=11, max_radius=44, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    assert make_shapes(root, SPEC)
    return root
