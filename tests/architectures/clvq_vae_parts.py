"""What tests of the CLVQ-VAE's maths share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bae_lens import TrainingCLVQVAE
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    LENGTH,
    N_CODES,
)

DECODERS = ["token", "transformer"]
JUNK = [float("nan"), float("inf"), 1e6, 0.0]
SEQUENCES = BATCH // LENGTH


def state(sae: TrainingCLVQVAE) -> dict[str, Tensor]:
    return copy.deepcopy(dict(sae.state_dict()))


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def parts(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return unpack_rows(rows, D_IN, D_OUT)


@contextmanager
def decoder_inputs(sae: Any) -> Iterator[list[Tensor]]:
    """The vectors that the decoder is given, one entry a call, tokens flat."""
    seen: list[Tensor] = []
    handle = sae.decoder.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def encoded(sae: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return sae.encoder(sae.process_sae_in(x))


def input_of(sae: Any, z: Tensor) -> Tensor:
    """The input that the encoder turns into ``z``, by fixed-point iteration."""
    with torch.no_grad():
        x = z.clone()
        for _ in range(300):
            x = x + 0.7 * (z - sae.encoder(x)) / (1 - sae.encoder.alpha)
        x = x / sae.input_scale + sae.input_mean
    torch.testing.assert_close(encoded(sae, x), z, rtol=0, atol=1e-4)
    return x


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    return (z[:, None] - codebook).norm(dim=-1)


def one_hot(indices: Tensor, n: int = N_CODES) -> Tensor:
    return torch.eye(n)[indices]


def planted_rows(
    n: int, seed: int = 0, noise: float = 0.3, d_out: int = D_OUT
) -> tuple[Tensor, Tensor]:
    """Rows and the latent of each token, in unequal shares; the higher layer is its mean exactly."""
    fixed = torch.Generator().manual_seed(11)
    means = [2 * torch.randn(N_CODES, d, generator=fixed) for d in (D_IN, d_out)]
    generator = torch.Generator().manual_seed(seed)
    share = torch.arange(2.0, N_CODES + 2)
    latent = torch.multinomial(share, n, replacement=True, generator=generator)
    lower = means[0][latent] + noise * torch.randn(n, D_IN, generator=generator)
    return pack_rows(lower, means[1][latent]), latent
