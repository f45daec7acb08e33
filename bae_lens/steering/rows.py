"""What a latent's activation adds to the activation of the model, and the units that it is in there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes.sae import _disable_hooks
from torch import Tensor

from bae_lens.architectures.token_scales import encode_with_scales, flat_heads
from bae_lens.checks.fields import plain, shown
from bae_lens.dictionaries import Dictionary


def check_latents(dictionary: Dictionary, latents: Iterable[Any]) -> list[int]:
    """Latents by their index, in the order given.

    Raises:
        ValueError: if one is no index of a latent, or is named twice.
    """
    # Of an array what is in it, of one number that.
    latents = latents.tolist() if hasattr(latents, "tolist") else latents  # pyright: ignore
    if isinstance(latents, (str, bytes)) or not isinstance(latents, Iterable):
        raise ValueError(f"Latents are given by their indices, as [3, 17]; got {shown(latents)}.")
    n, found = dictionary.n_latents, []
    for latent in latents:
        index = plain(latent)
        if type(index) is not int or not 0 <= index < n:
            raise ValueError(
                f"The {dictionary.name} has latents 0 to {n - 1}, and there is no latent "
                f"{shown(index)}."
            )
        if index in found:
            raise ValueError(f"Latent {index} is named twice.")
        found.append(index)
    return found


def check_has_rows(dictionary: Dictionary) -> None:
    """Refuse a decoder in which a code has no direction of its own.

    Raises:
        ValueError: if it decodes whole sequences, or sees more than the code.
    """
    if dictionary.decodes_sequences:
        raise ValueError(
            "The SAE decodes whole sequences, so that what a code adds depends on the codes of other "
            "tokens and it has no direction to steer along. Take a CLVQ-VAE with decoder='token'."
        )
    if not (dictionary.output_is_decoded_code or dictionary.has_skip):
        raise ValueError(
            "With decoder_memory='encoder' the reconstruction is not a function of the codes, and a "
            "code has no direction to steer along. Train with decoder_memory='codes'."
        )


def check_codes_alone(dictionary: Dictionary, instead: str) -> None:
    """Refuse a code of which a token's depends on other tokens.

    Args:
        dictionary: an SAE.
        instead: what to do rather than that, as the end of a sentence.

    Raises:
        ValueError: if it is a BatchTopK in training.
    """
    if dictionary.depends_on_batch:
        raise ValueError(
            f"What a {dictionary.name} in training fires at a token depends on the other tokens of the "
            f"batch. Save it for inference and load that, or {instead}."
        )


@torch.no_grad()
def latent_rows(dictionary: Dictionary, latents: Iterable[int]) -> Float[Tensor, "k d_out"]:
    """What one unit of each latent's activation adds to the output, in the units that ``decode`` has.

    Taken from ``decode`` itself, which is affine, so that it holds for scales of the output and decoder norms
    that an architecture keeps apart from ``W_dec``. A code of a one-hot code adds its decoded vector
    less the mean of all codes', since every token has one. Of SAEs that normalize each token, before that is
    undone, see ``encode_with_factor``.

    Args:
        dictionary: an SAE.
        latents: by index.
    """
    sae: Any = dictionary.source
    index = torch.tensor(list(latents), dtype=torch.long, device=dictionary.device)
    if dictionary.kind.is_one_hot:
        codes = code_vectors(sae)
        return codes[index] - codes.mean(0)
    one = torch.zeros(len(index), dictionary.n_latents, device=dictionary.device)
    one[torch.arange(len(index), device=index.device), index] = 1
    both = torch.cat([one, one.new_zeros(1, dictionary.n_latents)]).to(dictionary.dtype)
    # Decoding would undo a normalization of tokens that were not encoded.
    undo = sae.run_time_activation_norm_fn_out
    sae.run_time_activation_norm_fn_out = lambda x: x
    try:
        with flat_heads(sae), _disable_hooks(sae):
            decoded = sae.decode(both)
    finally:
        sae.run_time_activation_norm_fn_out = undo
    return decoded[:-1] - decoded[-1]


@torch.no_grad()
def code_vectors(sae: Any) -> Float[Tensor, "K d_out"]:
    """What each code of a one-hot code decodes to."""
    return sae.W_dec.detach() * sae.scale[:, None]


def encode_with_factor(sae: SAE[Any], read: Tensor) -> tuple[Tensor, Tensor | float]:
    """The code of activations, without the SAE's hooks, and what its decoded part is multiplied by at each token.

    Other than ``Dictionary.encode`` this lets gradients through.

    Args:
        sae: any SAE.
        read: ``[..., d_in]``, heads flattened.

    Returns:
        The dense code ``[..., n_latents]``, and 1 or ``[..., 1]``: of an SAE that scales each token, what undoes it.
    """
    with _disable_hooks(sae):
        acts, scales = encode_with_scales(sae, read.to(sae.device, sae.dtype))
    return acts, scales.factor
