"""Architectures of ``feature_untangling.py`` that neither SAELens nor bae-lens has: a peer and a control.

Importing this registers them with SAELens, so that its trainer trains them and
``SAE.load_from_disk`` finds what was saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, register_sae_class, register_sae_training_class
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.code_kind import ONE_BIT
from bae_lens.nn import with_feedback

BINARY, BATCHTOPK_FEEDBACK = "binary_sparse_coding", "batchtopk_feedback"

# Binary sparse coding


class _TopBits(torch.autograd.Function):
    """1 at the k largest margins of each row that are positive; those k have a sigmoid's gradient."""

    @staticmethod
    def forward(ctx: Any, margins: Tensor, k: int, temperature: float) -> Tensor:
        top = margins.topk(k, dim=-1, sorted=False)
        ctx.save_for_backward(top.values, top.indices)
        ctx.temperature = temperature
        bits = (top.values > 0).to(margins)
        return torch.zeros_like(margins).scatter(-1, top.indices, bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        values, indices = ctx.saved_tensors
        soft = torch.sigmoid(values / ctx.temperature)
        slope = soft * (1 - soft) / ctx.temperature
        own = grad.gather(-1, indices) * slope
        return torch.zeros_like(grad).scatter(-1, indices, own), None, None


class _BinaryCode:
    """What the inference and the training SAE of binary sparse coding have in common."""

    code_kind = ONE_BIT
    threshold: nn.Parameter
    scale: nn.Parameter

    def _initialize(self) -> None:
        sae: Any = self
        self.threshold = nn.Parameter(
            torch.zeros(sae.cfg.d_sae, dtype=sae.dtype, device=sae.device)
        )
        self.scale = nn.Parameter(torch.ones((), dtype=sae.dtype, device=sae.device))

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae: Any = self
        margins = sae.hook_sae_acts_pre(sae.process_sae_in(x) @ sae.W_enc - self.threshold)
        bits: Any = _TopBits.apply(margins, sae.cfg.k, sae.cfg.temperature)
        return sae.hook_sae_acts_post(bits * self.scale), margins

    def _decoded(self, acts: Tensor) -> Tensor:
        sae: Any = self
        out = sae.hook_sae_recons(acts @ sae.W_dec + sae.b_dec)
        return sae.reshape_fn_out(sae.run_time_activation_norm_fn_out(out), sae.d_head)


@dataclass
class BinarySAEConfig(SAEConfig):
    """Configuration class for ``BinarySAE``."""

    k: int = 100
    temperature: float = 2.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return BINARY


class BinarySAE(_BinaryCode, SAE[BinarySAEConfig]):
    """Inference with a code of ``TrainingBinarySAE``: the same hard top-k, threshold and scale."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._initialize()

    @override
    def encode(self, x: Tensor) -> Tensor:
        return self._encoded(x)[0]

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        return self._decoded(feature_acts)


@dataclass
class TrainingBinarySAEConfig(TrainingSAEConfig):
    """Configuration class for ``TrainingBinarySAE``: at most k bits per token, the surrogate's width."""

    k: int = 100
    temperature: float = 2.0
    decoder_init_norm: float | None = 1.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return BINARY


class TrainingBinarySAE(_BinaryCode, TrainingSAE[TrainingBinarySAEConfig]):
    """Binary sparse coding (Quirke, Shabalin and Belrose, arXiv 2509.25596), built from its description.

    Of each token the k latents whose pre-activation is furthest above a learned threshold of their
    own are chosen, and a chosen latent is 1 where it is above it; the gradient of that step is a
    sigmoid's of temperature 2, for the chosen ones. Rows of the decoder have norm 1, which is restored
    before each step.

    k unit vectors are too short for an input of norm √d_in, the scale at which SAELens trains all that
    is compared here. So all bits share one learned scale, fitted by least squares to the first batch;
    it is the same as training on inputs of another scale. The description has none per latent, and so
    has this. Nor has it a loss for dead latents.
    """

    def __init__(self, cfg: TrainingBinarySAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._is_fitted = False

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._initialize()

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._encoded(x)

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        return self._decoded(feature_acts)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        return {}

    @override
    def get_coefficients(self) -> dict[str, Any]:
        return {}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        with torch.no_grad():
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
            if not self._is_fitted:
                self._is_fitted = True
                x = step_input.sae_in - self.b_dec
                built = self._encoded(step_input.sae_in)[0] @ self.W_dec
                self.scale.mul_((x * built).sum() / built.square().sum())
        return super().training_forward_pass(step_input)


# BatchTopK with feedback


@dataclass
class FeedbackJumpReLUSAEConfig(JumpReLUSAEConfig):
    """Configuration class for ``FeedbackJumpReLUSAE``."""

    feedback_steps: int = 2

    @override
    @classmethod
    def architecture(cls) -> str:
        return BATCHTOPK_FEEDBACK


class FeedbackJumpReLUSAE(JumpReLUSAE):
    """What a ``FeedbackBatchTopKTrainingSAE`` is saved as: JumpReLU, with a threshold a pass.

    Parameters beside JumpReLU's: ``earlier_thresholds`` [feedback_steps], of the codes that feedback
    is about, and ``feedback_gain`` [d_sae].
    """

    cfg: FeedbackJumpReLUSAEConfig  # type: ignore[assignment]
    earlier_thresholds: nn.Parameter
    feedback_gain: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.earlier_thresholds = nn.Parameter(self.b_enc.new_zeros(self.cfg.feedback_steps))
        self.feedback_gain = nn.Parameter(torch.full_like(self.b_enc.data, 0.5))

    @override
    def encode(self, x: Tensor) -> Tensor:
        sae_in = self.process_sae_in(x)
        # The last code's residual is looked at too, to see whether the step was worth it.
        thresholds = iter((*self.earlier_thresholds, self.threshold))

        def reconstruct(pre: Tensor) -> Tensor:
            return (pre.relu() * (pre > next(thresholds))) @ self.W_dec

        pre = with_feedback(
            sae_in @ self.W_enc + self.b_enc,
            sae_in,
            self.W_enc,
            self.feedback_gain,
            reconstruct,
            self.cfg.feedback_steps,
        )
        pre = self.hook_sae_acts_pre(pre)
        return self.hook_sae_acts_post(pre.relu() * (pre > self.threshold))


@dataclass
class FeedbackBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """Configuration class for ``FeedbackBatchTopKTrainingSAE``."""

    feedback_steps: int = 2

    @override
    @classmethod
    def architecture(cls) -> str:
        return BATCHTOPK_FEEDBACK

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return FeedbackJumpReLUSAEConfig


class FeedbackBatchTopKTrainingSAE(BatchTopKTrainingSAE):
    """SAELens' BatchTopK with the feedback that a BAE has (``bae_lens.nn.with_feedback``).

    A control: what is gained by it is the encoder's and not that of a code of levels. As BatchTopK does
    for its threshold, each earlier pass keeps a running mean of the smallest value that it left on.
    """

    cfg: FeedbackBatchTopKTrainingSAEConfig  # type: ignore[assignment]
    earlier_thresholds: Tensor
    feedback_gain: nn.Parameter

    def __init__(
        self, cfg: FeedbackBatchTopKTrainingSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        if not cfg.apply_b_dec_to_input:
            raise ValueError(
                "Feedback here is of inputs less b_dec: set apply_b_dec_to_input=True."
            )
        self.feedback_gain = nn.Parameter(torch.full_like(self.b_enc.data, 0.5))
        zeros = torch.zeros(cfg.feedback_steps, dtype=torch.double, device=self.W_dec.device)
        self.register_buffer("earlier_thresholds", zeros)
        self._smallest: list[Tensor] = []

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae_in = self.process_sae_in(x)
        rescales = self.cfg.rescale_acts_by_decoder_norm
        norms = self.W_dec.norm(dim=-1) if rescales else torch.ones_like(self.b_enc)
        self._smallest = []

        def reconstruct(pre: Tensor) -> Tensor:
            acts = self.activation_fn(pre * norms)
            self._smallest.append(torch.where(acts > 0, acts, torch.inf).min())
            return act_times_W_dec(acts, self.W_dec, rescales)

        pre = with_feedback(
            sae_in @ self.W_enc + self.b_enc,
            sae_in,
            self.W_enc,
            self.feedback_gain,
            reconstruct,
            self.cfg.feedback_steps,
        )
        pre = self.hook_sae_acts_pre(pre) * norms
        return self.hook_sae_acts_post(self.activation_fn(pre)), pre

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        super().update_topk_threshold(acts_topk)
        if self.cfg.feedback_steps > 0 and self._smallest:
            seen = torch.stack(self._smallest[:-1]).to(self.earlier_thresholds)
            seen = torch.where(seen.isfinite(), seen, self.earlier_thresholds)
            self.earlier_thresholds.lerp_(seen, self.cfg.topk_threshold_lr)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            self.earlier_thresholds /= scaling_factor

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["earlier_thresholds"] = state_dict["earlier_thresholds"].to(self.dtype)


if BINARY not in SAE_CLASS_REGISTRY:
    register_sae_class(BINARY, BinarySAE, BinarySAEConfig)
    register_sae_training_class(BINARY, TrainingBinarySAE, TrainingBinarySAEConfig)
    register_sae_class(BATCHTOPK_FEEDBACK, FeedbackJumpReLUSAE, FeedbackJumpReLUSAEConfig)
    register_sae_training_class(
        BATCHTOPK_FEEDBACK, FeedbackBatchTopKTrainingSAE, FeedbackBatchTopKTrainingSAEConfig
    )
