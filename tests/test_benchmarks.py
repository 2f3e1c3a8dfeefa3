"""What benchmarks/ compares."""

import torch


def test_every_contestant_of_a_convolution_computes_the_same():
    """Those that are installed; a plain convolution does not."""
    from benchmarks.cases import CASES, contestants, passes

    (case,) = (case for case in CASES if (case.operator, case.name) == ("deform_conv2d", "tiny-64"))
    sample = case.sample(torch.float32).leaves()
    found = contestants(case.operator)
    names = ("dcnzoo", "dcnzoo channels_last", "reference", "F.conv2d")
    ours, *same, plain = (passes(found[name](sample), sample.given, "forward+backward")() for name in names)
    for other in same:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-3)
    assert plain[0].shape == ours[0].shape and not torch.allclose(plain[0], ours[0], atol=0.1)
