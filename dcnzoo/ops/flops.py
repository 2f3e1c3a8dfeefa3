"""FLOPs formulas for torch's ``FlopCounterMode``. Importing this module registers them."""

import torch
from torch.utils.flop_counter import register_flop_formula

import dcnzoo.ops  # noqa: F401  the operators
from dcnzoo.ops._flops import formulas

for _name, _formula in formulas.items():
    register_flop_formula(getattr(torch.ops.dcnzoo, _name))(_formula)
