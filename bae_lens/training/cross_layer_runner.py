"""SAELens' training runner for architectures that read one hook point and write another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE
from sae_lens.evals import EvalConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.util import str_to_dtype
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import override

from bae_lens.activations.hook_points import hook_shape
from bae_lens.activations.paired_activations import ContextStore, PairedActivations, PairedStore
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.sentence_store import SentenceStore, is_encoder_model
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_store import TextStore, check_text_settings
from bae_lens.checks.fields import OneOf, check_fields
from bae_lens.distributed import all_gather_objects, n_ranks, rank
from bae_lens.evals import run_evals
from bae_lens.training.run_checks import check_width
from bae_lens.training.runner import TrainingRunner
from bae_lens.training.runner_fields import check_runner
from bae_lens.training.runner_model import load_runner_model
from bae_lens.training.same_run import own_batch_size

TextUnit = Literal["context", "sentence"]


def is_cross_layer(architecture: str) -> bool:
    """Whether a registered architecture trains on batches of two hook points."""
    return getattr(SAE_TRAINING_CLASS_REGISTRY[architecture][0], "is_cross_layer", False)


@dataclass
class CrossLayerRunnerConfig(LanguageModelSAERunnerConfig[Any]):
    """``LanguageModelSAERunnerConfig`` with a second hook point.

    Args:
        hook_name_out (str): The higher hook point, whose activations are the target; "" for
            ``hook_name`` itself.
        text_unit (str): ``"context"``: SAELens' stream of tokens in pieces of ``context_size``.
            ``"sentence"``: each text is a sequence of its own, with the tokenizer's special tokens
            and an attention mask, cut off at ``context_size`` tokens. Encoder models need it.
        initialization_tokens (int): Tokens from which means, scales and the codebook are set before
            training.

    Raises:
        ValueError: if the architecture has no second hook point, or a field has no meaning here.
    """

    hook_name_out: str = ""
    text_unit: TextUnit = "context"
    initialization_tokens: int = 32_768

    @override
    def __post_init__(self) -> None:
        check_runner(self)
        check_fields(self, {"text_unit": OneOf(get_args(TextUnit))})
        super().__post_init__()
        self.hook_name_out = self.hook_name_out or self.hook_name
        sae = self.sae
        if not is_cross_layer(sae.architecture()):
            known = [name for name in SAE_TRAINING_CLASS_REGISTRY if is_cross_layer(name)]
            raise ValueError(
                f"A {sae.architecture()!r} reconstructs its own input and has no hook_name_out; "
                f"architectures of two hook points are {', '.join(known)}."
            )
        for name, value in (
            ("hook_head_index", self.hook_head_index),
            ("use_cached_activations", self.use_cached_activations or None),
        ):
            if value is not None:
                raise ValueError(f"{name} is not supported with two hook points; got {value!r}.")
        if self.text_unit == "sentence" and self.seqpos_slice != (None,):
            raise ValueError(
                "seqpos_slice is not supported with text_unit='sentence': exclude special tokens by "
                f"exclude_special_tokens; got {self.seqpos_slice!r}."
            )
        if self.text_unit == "sentence" and (self.autocast_lm or not self.prepend_bos):
            raise ValueError(
                "With text_unit='sentence' texts begin as the tokenizer has them begin and the model "
                "runs in its own precision: set prepend_bos to true and autocast_lm to false."
            )
        if sae.normalize_activations != "none":
            raise ValueError(
                f"A {sae.architecture()} centers and scales the activations of each hook point "
                f"itself: set normalize_activations to 'none'; got {sae.normalize_activations!r}."
            )
        fixed: dict[str, Any] = {"d_out": sae.d_in if sae.d_out is None else sae.d_out}
        if hasattr(sae, "sequence_length"):
            # Nothing to be chosen: it is that of the text, whatever a config that is used again says.
            is_whole = sae.decoder == "transformer"
            positions = range(self.context_size)[slice(*self.seqpos_slice)]
            fixed["sequence_length"] = len(positions) if is_whole else None
            if self.initialization_tokens < sae.d_sae:
                raise ValueError(
                    f"initialization_tokens is {self.initialization_tokens}, but a codebook of "
                    f"d_sae = {sae.d_sae} codes needs at least as many tokens, and better 50 times "
                    "as many. Raise the one or lower the other."
                )
        # A copy: the caller's may be shared with another run.
        self.sae = replace(sae, **fixed)

    @property
    def sequence_length(self) -> int | None:
        """Rows of a training batch that belong together, or None for single tokens."""
        return getattr(self.sae, "sequence_length", None)


class CrossLayerTrainingRunner(TrainingRunner):
    """``TrainingRunner`` for CLVQ-VAEs and transcoders: batches of two hook points.

    Everything that ``TrainingRunner`` adds to SAELens' runner holds here too. Both hook points come
    from one forward pass; padding and special tokens (``exclude_special_tokens``) are told by a
    mask. Single tokens are mixed as SAELens mixes them; for a transformer decoder whole sequences
    are served. The saved autoencoder's metadata has both hook names.

    Args:
        cfg: a ``CrossLayerRunnerConfig``.
        override_dataset: as for SAELens; with ``text_unit="sentence"`` also a list of texts.
        override_model: as for SAELens.
        override_sae: as for SAELens; initialized if it is not yet.
        replay_tokens: as for ``TrainingRunner``; where whole sequences are kept, masked positions
            (special tokens, padding) count, here and in ``training_tokens``.
        replay_path: as for ``TrainingRunner``; both hook points, ``text_unit`` and the sequences'
            length are compared too.

    Raises:
        ValueError: if the model lacks one of the hooks, ``cfg.sae.d_in`` or ``d_out`` is not its
            width, or a batch is no number of whole sequences.
    """

    cfg: CrossLayerRunnerConfig
    _has_second_hook = True

    @override
    def _load_model(self) -> HookedRootModule:
        return load_runner_model(self.cfg, self._hook_names, self.trust_remote_code)

    @override
    def _check_hooks(self, model: HookedRootModule) -> None:
        cfg = self.cfg
        if cfg.text_unit == "context" and is_encoder_model(model):
            raise ValueError(
                f"{cfg.model_name!r} is an encoder, whose tokens see the whole text: a stream of "
                "joined texts without an attention mask is not what it reads. Set text_unit to "
                "'sentence'."
            )
        for name, field in ((cfg.hook_name, "d_in"), (cfg.hook_name_out, "d_out")):
            shape = hook_shape(model, name, **cfg.model_kwargs)
            if len(shape) > 1:
                raise ValueError(
                    f"{name!r} has {shape[0]} heads; hook a point without heads for "
                    f"a {cfg.sae.architecture()}."
                )
            check_width(cfg, field, name, shape[0])

    @override
    def _build(self, dataset: Any, model: HookedRootModule, sae: TrainingSAE[Any] | None) -> None:
        cfg = self.cfg
        self.model = model
        self._compile_llm_if_needed()
        paired = self._paired_store(dataset)
        self.activations_store = PairedActivations(  # pyright: ignore[reportAttributeAccessIssue]
            paired,
            own_batch_size(cfg),
            cfg.sequence_length,
            cfg.n_batches_in_buffer * cfg.context_size,
            cfg.activations_mixing_fraction,
            str_to_dtype(cfg.dtype),
        )
        if sae is None:
            sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
        self.sae = sae.to(cfg.device)
        if hasattr(self.sae.cfg, "sequence_length"):
            # One that was trained before may have seen other texts.
            self.sae.cfg.sequence_length = cfg.sequence_length
        self.evaluator = CrossLayerEvaluator(self.model, paired, cfg)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _hook_names(self) -> list[str]:
        return list(dict.fromkeys([self.cfg.hook_name, self.cfg.hook_name_out]))

    def _paired_store(self, dataset: Any) -> PairedStore:
        cfg = self.cfg
        special = (
            special_token_ids(self.model, cfg.exclude_special_tokens)
            if cfg.text_unit == "sentence"
            else check_text_settings(cfg, self.model, dataset)
        )
        device = torch.device(cfg.act_store_device or cfg.device)
        if cfg.text_unit == "sentence":
            return SentenceStore(
                self.model,
                dataset,
                self._hook_names,
                context_size=cfg.context_size,
                store_batch_size_prompts=cfg.store_batch_size_prompts,
                exclude_special_tokens=special,
                model_kwargs=cfg.model_kwargs,
                device=device,
                dtype=str_to_dtype(cfg.dtype),
            )
        store = TextStore.from_config_multi_hook(
            self.model,
            dataset=dataset,
            hook_names=self._hook_names,
            hook_d_ins={cfg.hook_name_out: cfg.sae.d_out, cfg.hook_name: cfg.sae.d_in},
            streaming=cfg.streaming,
            context_size=cfg.context_size,
            n_batches_in_buffer=cfg.n_batches_in_buffer,
            total_training_tokens=cfg.training_tokens,
            store_batch_size_prompts=cfg.store_batch_size_prompts,
            train_batch_size_tokens=own_batch_size(cfg),
            prepend_bos=cfg.prepend_bos,
            device=device,
            dtype=cfg.dtype,
            model_kwargs=cfg.model_kwargs,
            autocast_lm=cfg.autocast_lm,
            seqpos_slice=cfg.seqpos_slice,
            exclude_special_tokens=torch.tensor(special, device=device) if special else None,
            disable_concat_sequences=cfg.disable_concat_sequences,
            sequence_separator_token=cfg.sequence_separator_token,
            activations_mixing_fraction=cfg.activations_mixing_fraction,
            use_chat_formatting=cfg.use_chat_formatting,
        )
        return ContextStore(store, [cfg.hook_name, cfg.hook_name_out], special)

    @override
    def _before_training(self) -> None:
        sae: Any = self.sae
        is_new = self.cfg.from_pretrained_path is None and self.cfg.resume_from_checkpoint is None
        if is_new and not sae.is_calibrated:
            sae.calibrate(
                self._initialization_rows().to(sae.device), self.cfg.train_batch_size_tokens
            )

    def _initialization_rows(self) -> Tensor:
        """Rows to begin with; this rank's share of them."""
        store, n = self.activations_store, self.cfg.initialization_tokens
        if isinstance(store, ReplayedActivations):
            generator = torch.Generator().manual_seed(self.cfg.seed)
            order = torch.randperm(len(store.activations), generator=generator)
            if store.is_common:
                order = order[:n].tensor_split(n_ranks())[rank()]
            else:
                order = order[: min(all_gather_objects(min(n // n_ranks(), len(order))))]
            return store.activations[order.to(store.activations.device)]
        rows: list[Tensor] = []
        while sum(map(len, rows)) < n / n_ranks():
            rows.append(next(store))
        return torch.cat(rows)

    @override
    def _set_sae_metadata(self) -> None:
        super()._set_sae_metadata()
        self.sae.cfg.metadata.hook_name_out = self.cfg.hook_name_out
        self.sae.cfg.metadata.text_unit = self.cfg.text_unit


class CrossLayerEvaluator:
    """SAELens' evals while training, at the higher hook point: see ``bae_lens.run_evals``."""

    def __init__(
        self, model: HookedRootModule, store: PairedStore, cfg: CrossLayerRunnerConfig
    ) -> None:
        self.model, self.cfg = model, cfg
        self.store: Any = store.store if isinstance(store, ContextStore) else store

    def __call__(
        self, sae: TrainingSAE[Any], data_provider: Any, activation_scaler: ActivationScaler
    ) -> dict[str, Any]:
        n = self.cfg.n_eval_batches
        config = EvalConfig(
            batch_size_prompts=self.cfg.eval_batch_size_prompts,
            n_eval_reconstruction_batches=n,
            n_eval_sparsity_variance_batches=n,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        )
        is_prefetched = isinstance(data_provider, PrefetchingIterator)
        if is_prefetched:
            # Its thread reads the same store.
            with data_provider.paused():
                return self._evaluate(sae, activation_scaler, config)
        return self._evaluate(sae, activation_scaler, config)

    def _evaluate(
        self, sae: TrainingSAE[Any], scaler: ActivationScaler, config: EvalConfig
    ) -> dict[str, Any]:
        metrics, _ = run_evals(
            sae,
            self.store,
            self.model,
            scaler,
            config,
            self.cfg.model_kwargs,
            self.cfg.exclude_special_tokens,
            n_code_tokens=0,
        )
        return metrics
