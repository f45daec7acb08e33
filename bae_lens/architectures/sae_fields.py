"""What the fields may be that every SAE's config has from SAELens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAEConfig
from sae_lens.constants import DTYPE_MAP, DTYPE_TO_STR
from sae_lens.saes.sae import SAEMetadata

from bae_lens.checks.fields import Device, Flag, OneOf, Rule, positive, whole


@dataclass(frozen=True)
class Dtype:
    """The name of a dtype that SAELens has weights in; torch's own is put into its name."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return f"one of {', '.join(DTYPE_TO_STR.values())}"

    def read(self, value: Any) -> str:
        if isinstance(value, torch.dtype) and value in DTYPE_TO_STR:
            return DTYPE_TO_STR[value]
        if not isinstance(value, str) or value not in DTYPE_MAP:
            raise ValueError
        return value


@dataclass(frozen=True)
class Metadata:
    """SAELens' metadata, or what a file says for it."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "an SAEMetadata"

    def read(self, value: Any) -> SAEMetadata:
        if isinstance(value, SAEMetadata):
            return value
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValueError
        return SAEMetadata(**value)


# Kinds of ``normalize_activations`` that divide each token by a number of its own.
SCALES_BY_TOKEN = ("layer_norm", "constant_norm_rescale")
# Those of ``SAEConfig``.
SAE_FIELDS: Mapping[str, Rule] = {
    "d_in": whole(1),
    "d_sae": whole(1),
    "dtype": Dtype(),
    "device": Device(),
    "apply_b_dec_to_input": Flag(),
    "normalize_activations": OneOf(
        (
            "none",
            "expected_average_only_in",
            "constant_norm_rescale",
            "layer_norm",
            "covariance_whitening",
        )
    ),
    "reshape_activations": OneOf(("none", "hook_z")),
    "metadata": Metadata(),
}
# Those of ``TrainingSAEConfig``.
TRAINING_SAE_FIELDS: Mapping[str, Rule] = {
    **SAE_FIELDS,
    "decoder_init_norm": positive(or_none=True),
}
# Of an architecture that reads one hook point and writes another.
CROSS_LAYER_FIELDS: Mapping[str, Rule] = {"d_out": whole(1, or_none=True)}


def training_details(cfg: SAEConfig) -> Mapping[str, Any]:
    """The training settings that a saved SAE's metadata has, as a file says them; empty where it has none."""
    details = cfg.metadata.training_architecture_details
    return details if isinstance(details, dict) else {}
