"""Weights that are numbers."""

from __future__ import annotations

import pytest
import torch

from bae_lens.checks.finite import check_finite_weights
from tests.helpers import make_bae, make_clvq, make_training_bae


@pytest.mark.parametrize("make", [make_bae, make_training_bae, make_clvq])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_that_every_tensor_is_looked_at(make, bad) -> None:
    check_finite_weights(make())
    for name, value in make().state_dict().items():
        if not value.is_floating_point():
            continue
        sae = make()
        sae.state_dict()[name].view(-1)[0] = bad
        with pytest.raises(ValueError, match=f"1 of the {value.numel()} numbers in {name} of it"):
            check_finite_weights(sae, "it")


def test_that_whole_numbers_pass() -> None:
    check_finite_weights(torch.nn.BatchNorm1d(3))
