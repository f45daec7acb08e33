"""Which weights a result is of."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from bae_lens import BAE, CLVQVAE, BAEConfig, CLVQVAEConfig
from bae_lens.fingerprint import weights_sha256

DICTIONARIES = (
    StandardSAE(StandardSAEConfig(d_in=4, d_sae=6)),
    BAE(BAEConfig(d_in=4, d_sae=6)),
    CLVQVAE(CLVQVAEConfig(d_in=4, d_out=4, d_sae=6, decoder="token")),
)


@pytest.mark.parametrize("sae", DICTIONARIES, ids=lambda sae: type(sae).__name__)
def test_that_it_is_of_every_weight(sae: SAE, tmp_path: Path) -> None:
    own = weights_sha256(sae)
    assert len(own) == 64
    sae.save_model(tmp_path)
    assert weights_sha256(SAE.load_from_disk(tmp_path)) == own
    assert weights_sha256(deepcopy(sae).double()) != own
    for name, value in sae.state_dict().items():
        other = deepcopy(sae)
        changed = torch.nextafter(value.float(), torch.tensor(9.0)).to(value.dtype)
        changed = changed if not torch.equal(changed, value) else value + 1
        other.state_dict()[name].copy_(changed)
        assert weights_sha256(other) != own, name


def test_that_shapes_and_types_count() -> None:
    class Holder(torch.nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("value", value)

    zeros = (
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(6),
        torch.zeros(6, dtype=torch.int32),
    )
    values = (*zeros, torch.zeros(2, 3).T, torch.tensor(0.0), torch.zeros(6).bfloat16())
    found = [weights_sha256(Holder(value)) for value in values]
    assert found[1] == found[4]
    assert len(set(found)) == len(found) - 1
