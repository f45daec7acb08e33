"""What architectures share that read one hook point and write another, and can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from bae_lens.architectures.packed_rows import Packed, unpack_rows
from bae_lens.architectures.saving import save_whole
from bae_lens.checks.fields import check, positive
from bae_lens.checks.finite import check_finite_weights
from bae_lens.distributed import all_gather_objects, all_gather_rows, all_sum, all_sums, broadcast
from bae_lens.nn import Float32Buffers


class CrossLayerSAE(Float32Buffers, SAE[Any]):
    """Inputs and targets in their own units: centered, inputs of mean norm √d_in, targets of unit variance.

    The activations of two hook points differ in mean and length; SAELens' scaler knows of one. Here
    the model keeps both, as buffers ``input_mean`` [d_in], ``input_scale``, ``target_mean`` [d_out]
    and ``target_scale``, set once by ``calibrate``.
    """

    float32_buffers = ("input_mean", "input_scale", "target_mean", "target_scale")

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    # Told by this and not by the class, which a reload of this package makes anew.
    is_cross_layer = True
    # Mirrors what the buffers hold, so that no step has to ask the device.
    is_calibrated: bool = False

    @property
    def d_out(self) -> int:
        """Width of the higher hook point."""
        return self.cfg.d_in if self.cfg.d_out is None else self.cfg.d_out

    def register_units(self) -> None:
        kwargs: dict[str, Any] = {"device": self.device, "dtype": torch.float32}
        self.register_buffer("input_mean", torch.zeros(self.cfg.d_in, **kwargs))
        self.register_buffer("input_scale", torch.ones((), **kwargs))
        self.register_buffer("target_mean", torch.zeros(self.d_out, **kwargs))
        self.register_buffer("target_scale", torch.ones((), **kwargs))

    def fit_units(self, rows: Float[Tensor, "n width"]) -> Packed:
        """Set the units from a batch; returns its valid tokens, on several ranks those of all of them.

        Raises:
            ValueError: if there are fewer than two, or not all values are finite.
        """
        # A rank may have one more than another.
        lengths = all_gather_objects(len(rows))
        padded = nn.functional.pad(rows.float(), (0, 0, 0, max(lengths) - len(rows)))
        parts = all_gather_rows(padded).split(max(lengths))
        rows = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
        lower, upper, valid = unpack_rows(rows, self.cfg.d_in, self.d_out)
        lower, upper = lower[valid], upper[valid]
        if len(lower) < 2:
            raise ValueError(
                f"Initialization needs at least two valid tokens; the batch has {len(lower)}."
            )
        if not (lower.isfinite().all() and upper.isfinite().all()):
            raise ValueError(
                "Some activations are NaN or infinite. Check the model's dtype and the hook points."
            )
        input_mean, target_mean = lower.mean(0), upper.mean(0)
        norm = (lower - input_mean).norm(dim=-1).mean()
        spread = (upper - target_mean).square().mean().sqrt()
        for name, value in (("distance from the mean", norm), ("variance", spread)):
            if not value.isfinite():
                raise ValueError(
                    f"The activations' mean {name} is beyond what float32 holds. Check the hook points."
                )
        units = {
            "input_mean": input_mean,
            "target_mean": target_mean,
            # A constant is left at its scale.
            "input_scale": torch.where(norm > 0, self.cfg.d_in**0.5 / norm, 1),
            "target_scale": torch.where(spread > 0, spread, 1),
        }
        for name, value in units.items():
            getattr(self, name).copy_(broadcast(value))
        return Packed(lower, upper, valid[valid])

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        """The input in the model's units."""
        # Not cast before it is centered: in bfloat16 what is left would be rounded as the mean is.
        x = self.hook_sae_input(sae_in)
        if x.shape[-1] != self.cfg.d_in:
            raise ValueError(
                f"This autoencoder reads activations [..., d_in = {self.cfg.d_in}]; got shape "
                f"{tuple(x.shape)}."
            )
        return ((x - self.input_mean) * self.input_scale).to(self.dtype)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        # SAELens' loader casts whatever is in the file to the model's dtype.
        for name in set(self.float32_buffers) & state_dict.keys():
            state_dict[name] = state_dict[name].float()

    def to_target(self, decoded: Tensor) -> Tensor:
        """What the decoder says, in units of the higher hook point."""
        return (self.target_mean + self.target_scale * decoded).to(decoded.dtype)

    def from_target(self, upper: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Activations of the higher hook point in the decoder's units: the other way about."""
        return (upper - self.target_mean) / self.target_scale

    def refuse_error_term(self) -> None:
        refuse_error_term(self)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        check_finite_weights(self)
        cfg = self.cfg
        self.cfg = replace(cfg, d_out=self.d_out)
        try:
            return save_whole(path, super().save_model)
        finally:
            self.cfg = cfg

    def hooked_recons(self, decoded: Float[Tensor, "n d_out"], valid: Bool[Tensor, " n"]) -> Tensor:
        """What the decoder says in a training step, after the hooks of ``hook_sae_recons``.

        They are shown what ``decode`` gives them, in units of the higher hook point and zero where
        not valid. Where they change nothing, ``decoded`` itself is returned.
        """
        if not is_hooked(self.hook_sae_recons):
            return decoded
        recons = masked(self.to_target(decoded), valid)
        version = recons._version
        hooked = self.hook_sae_recons(recons)
        # A hook may also write into the tensor that it is shown.
        if hooked is recons and recons._version == version:
            return decoded
        return masked(self.from_target(hooked), valid)

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Read and write unscaled activations, where both hook points were scaled in training."""
        scaling_factor = check("scaling_factor", scaling_factor, positive())
        for name in ("input_mean", "target_mean", "target_scale"):
            getattr(self, name).div_(scaling_factor)
        self.input_scale.mul_(scaling_factor)
        self.cfg.normalize_activations = "none"

    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        """Refused: the model scales its own input, by one number."""
        raise NotImplementedError(
            f"A {self.cfg.architecture()} centers and scales its activations itself and cannot take "
            "a whitening in. Train it with normalize_activations='none'."
        )


def is_hooked(point: HookPoint) -> bool:
    """Whether anything at a hook point looks at what passes, or at its gradient, or may change it."""
    return bool(point._forward_hooks or point._backward_hooks)


def refuse_error_term(sae: SAE[Any]) -> None:
    """Raises ``ValueError`` if SAELens' error term is on: it is of the input's hook point."""
    if sae.use_error_term:
        raise ValueError(
            f"A {sae.cfg.architecture()} alone does not know the activation that its error refers "
            "to: use bae_lens.attached(model, sae, use_error_term=True)."
        )


class TrainingAcrossLayers:
    """What configs for training share whose ``d_out`` is that of the input unless it is said.

    It stays None while ``d_in`` may still be set, by a command line or SAELens' synthetic runner; in
    the files of an SAE it is a number.
    """

    d_in: int
    d_out: int | None

    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        cfg = super().get_inference_sae_cfg_dict()  # pyright: ignore[reportAttributeAccessIssue]
        return cfg | {"d_out": self.d_in if self.d_out is None else self.d_out}


def check_cross_layer(cfg: Any) -> None:
    """Refuse SAELens' options that have no meaning between two hook points.

    Raises:
        ValueError: if one of them is set.
    """
    if cfg.apply_b_dec_to_input:
        raise ValueError(
            "apply_b_dec_to_input must be False: what the decoder adds belongs to another hook "
            "point than the input."
        )
    if cfg.normalize_activations not in ("none", "expected_average_only_in"):
        raise ValueError(
            f"A {cfg.architecture()} centers and scales its activations itself: set "
            "normalize_activations to 'none' (or 'expected_average_only_in'); got "
            f"{cfg.normalize_activations!r}."
        )
    if cfg.reshape_activations != "none":
        raise ValueError(
            f"A {cfg.architecture()} takes [..., tokens, d_in] and cannot reshape heads: set "
            "reshape_activations to 'none' and hook a point without heads; got "
            f"{cfg.reshape_activations!r}."
        )


def masked(x: Tensor, valid: Bool[Tensor, " n"], other: Tensor | float = 0.0) -> Tensor:
    """``x`` with ``other`` in the rows that are not valid, whatever stood there, NaN included."""
    # A number is not made a tensor: the device would have to be waited for.
    other = other.to(x.dtype) if isinstance(other, Tensor) else other
    return torch.where(valid[:, None], x, other)


@torch.no_grad()
def count_and_mean(
    upper: Float[Tensor, "n d_out"], valid: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " d_out"]]:
    """How many tokens are valid, at least 1, and the mean of ``upper`` over them, of all ranks'.

    Args:
        upper: finite in every row.
        valid: the mask.
    """
    n_valid, total = all_sums(valid.sum(), valid.float() @ upper.float())
    n_valid = n_valid.clamp(min=1)
    return n_valid, total / n_valid


@torch.no_grad()
def target_and_output(
    upper: Float[Tensor, "n d_out"],
    error: Float[Tensor, "n d_out"],
    valid: Bool[Tensor, " n"],
    n_valid: Float[Tensor, ""],
    mean: Float[Tensor, " d_out"],
) -> tuple[Tensor, Tensor, dict[str, Callable[[], Tensor]]]:
    """What SAELens' trainer is to log as ``sae_in`` and ``sae_out``, and the relative squared error.

    Tokens that the mask excludes are given the mean of the others in both: they add neither
    variance nor error, which leaves the explained variance that of the valid ones.

    Args:
        upper: the target, finite in every row.
        error: reconstruction minus target, in its units; zero where not valid.
        valid: the mask.
        n_valid: as ``count_and_mean`` returned it.
        mean: likewise.
    """
    upper, error = upper.float(), error.float()
    target = masked(upper, valid, mean)
    # A callable is evaluated on logging steps only.
    relative = partial(_relative_squared_error, upper, error, valid, n_valid)
    return target, target + error, {"relative_squared_error": relative}


@torch.no_grad()
def _relative_squared_error(upper: Tensor, error: Tensor, valid: Tensor, n_valid: Tensor) -> Tensor:
    share = error.square().sum(-1) / upper.square().sum(-1).clamp(min=1e-30)
    return all_sum(torch.where(valid, share, 0).sum()) / n_valid
