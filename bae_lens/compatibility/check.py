"""Try on a language model what this package relies on: hooks, tokens, padding, attached SAEs, caches, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAE, HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from bae_lens.activations.hook_points import hook_shape
from bae_lens.activations.outlier_tokens import token_norms
from bae_lens.activations.sentence_store import is_encoder_model
from bae_lens.activations.special_tokens import special_token_ids, special_token_mask
from bae_lens.activations.token_ids import context_of
from bae_lens.attach import attached
from bae_lens.checks.fields import shown
from bae_lens.compatibility.result import Compatibility, Finding
from bae_lens.loading.classifiers import class_names

# Of different lengths, so that one is padded.
TEXTS = (
    "The committee met on Tuesday.",
    "When the rain had stopped at last, they walked down to the river and looked for the old boat that he had described.",
)
_N_GENERATED = 5
# How much longer than the median a position is to be called a sink.
_SINK = 10
# Of a difference over the norm, by what the weights can tell apart.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def default_hook(model: Any) -> str:
    """The residual stream after the block in the middle.

    Raises:
        ValueError: if the model has none by either of its usual names.
    """
    n_layers = getattr(getattr(model, "cfg", None), "n_layers", 0)
    block = f"blocks.{n_layers // 2}"
    for name in (f"{block}.hook_resid_post", f"{block}.hook_out"):
        if name in model.hook_dict:
            return name
    some = ", ".join(list(model.hook_dict)[:8])
    raise ValueError(f"Name a hook point of the model: it has {some}, …")


def check_model(model: Any, hook_name: str | None = None, model_name: str = "") -> Compatibility:
    """Run a model on two sentences, and see whether it keeps what is relied on at a hook point.

    Args:
        model: a ``HookedSAETransformer`` or ``SAETransformerBridge``, with its tokenizer.
        hook_name: of the hook point; the residual stream in the middle if omitted.
        model_name: how the result names it; its config's name if omitted.

    Returns:
        What was seen. What fails while it is tried is a finding, and ends nothing; of a model that cannot read the
        texts at all, it is the only one.

    Raises:
        ValueError: if the model has no such hook point, it does not fire or has no activation for each token, or there
            is no tokenizer.
    """
    name = hook_name or default_hook(model)
    own = getattr(getattr(model, "cfg", None), "model_name", "")

    def found(*findings: Finding) -> Compatibility:
        return Compatibility(model_name or str(own), type(model).__name__, name, findings)

    if getattr(model, "tokenizer", None) is None:
        raise ValueError("The model has no tokenizer, so that nothing can be read. Give it one.")
    what = "the hook point fires"
    try:
        shape = hook_shape(model, name)
    except ValueError:
        raise
    except Exception as error:  # Of any model's code: that it fails is what is to be found out.
        return found(_raised(what, error))
    fires = Finding(what, True, _shape_in_words(shape))
    was_training = model.training
    try:
        trial = _Trial(model, name, shape)
    except Exception as error:
        return found(fires, _raised("texts are read", error))
    findings = [
        fires,
        trial.attempt("activations are finite", trial.finite),
        trial.attempt("the first layers alone give the same", trial.stopped),
        trial.attempt("number type", trial.dtype),
        trial.attempt("texts begin with", trial.beginning),
        trial.attempt("special tokens", trial.special),
        trial.attempt("attention sinks", trial.sinks),
        *(
            trial.attempt(f"padding on the {side} changes no token", trial.padding(side))
            for side in ("left", "right")
        ),
        trial.attempt("attached with the error term, the output stays", trial.attached_exactly),
        trial.attempt("attached without it, the output changes", trial.attached),
        trial.attempt("afterwards everything is as before", trial.afterwards),
        trial.attempt("generation with a cache is that without", trial.generation),
        trial.attempt("gradients reach the hook point", trial.gradients),
        trial.attempt("predicts classes", trial.classes),
    ]
    model.train(was_training)  # Generation leaves a HookedTransformer in eval mode.
    return found(*findings)


def _raised(name: str, error: Exception) -> Finding:
    reason = shown(" ".join(str(error).split()))
    return Finding(name, False, f"{type(error).__name__}: {reason}", "See what was raised.")


def _shape_in_words(shape: torch.Size) -> str:
    if len(shape) == 1:
        return f"width {shape[0]}"
    return f"{shape[0]} heads of width {shape[1:].numel()}, side by side {shape.numel()}"


class _Trial:
    """One model at one hook point."""

    def __init__(self, model: Any, hook_name: str, shape: torch.Size) -> None:
        self.model, self.hook_name, self.shape = model, hook_name, shape
        self.is_encoder = is_encoder_model(model)
        self.n_ctx = context_of(model)
        self.alone = [self._activations(text) for text in TEXTS]
        self.weights = next(model.parameters()).dtype
        self.tolerance = _TOLERANCE.get(self.weights, 1e-3)
        self.logits = self._logits()

    def attempt(self, name: str, look: Callable[[], tuple[bool | None, str, str]]) -> Finding:
        """What was seen, or what was raised over it."""
        try:
            return Finding(name, *look())
        except Exception as error:
            return _raised(name, error)

    # What the model does

    @torch.no_grad()
    def _activations(self, text: Any, **options: Any) -> Tensor:
        """``[batch, pos, d]`` at the hook point."""
        _, cache = self.model.run_with_cache(text, names_filter=[self.hook_name], **options)
        return cache[self.hook_name].flatten(2).float()

    @torch.no_grad()
    def _logits(self) -> Tensor:
        return self.model(self._tokens()).float()

    def _tokens(self) -> Tensor:
        return self.model.to_tokens(TEXTS[1])

    def _sae(self) -> SAE[Any]:
        """An untrained TopK of the width of the hook point, which is far from reconstructing it."""
        parameter = next(self.model.parameters())
        d_in = self.shape.numel()
        cfg = TopKSAEConfig(d_in=d_in, d_sae=2 * d_in, k=min(8, d_in), device=str(parameter.device))
        cfg.metadata.hook_name = self.hook_name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return TopKSAE(cfg).eval()

    def _differs(self, one: Tensor, other: Tensor) -> float:
        return ((one - other).norm() / other.norm().clamp(min=1e-30)).item()

    # What is to be found out

    def finite(self) -> tuple[bool | None, str, str]:
        share = torch.cat([acts.flatten() for acts in self.alone]).isfinite().float().mean().item()
        return (
            share == 1,
            f"{share:.1%} of values",
            "" if share == 1 else "Load the weights in float32 or bfloat16.",
        )

    def stopped(self) -> tuple[bool | None, str, str]:
        stop = extract_stop_at_layer_from_tlens_hook_name(self.hook_name)
        if stop is None:
            return None, "the whole model is run for this hook point", ""
        difference = self._differs(self._activations(TEXTS[1], stop_at_layer=stop), self.alone[1])
        return (
            difference <= self.tolerance,
            f"layers from {stop} on are left out; {difference:.1e}",
            "",
        )

    def dtype(self) -> tuple[bool | None, str, str]:
        name = str(self.weights).removeprefix("torch.")
        is_half = self.weights == torch.float16
        advice = "Train SAEs in float32 or bfloat16: float16 overflows." if is_half else ""
        return None, f"weights in {name}", advice

    def beginning(self) -> tuple[bool | None, str, str]:
        first = int(self._tokens()[0, 0])
        word = self.model.tokenizer.convert_ids_to_tokens(first)
        is_left_out = first in special_token_ids(self.model, True)
        said = "is left out" if is_left_out else "is none that is left out"
        return None, f"{shown(word)}, which {said} with exclude_special_tokens", ""

    def special(self) -> tuple[bool | None, str, str]:
        ids = special_token_ids(self.model, True)
        names = ", ".join(map(shown, self.model.tokenizer.convert_ids_to_tokens(ids)))
        if not ids:
            advice = "Give token ids as exclude_special_tokens, if positions are to be left out."
            return None, "the tokenizer names none", advice
        return None, f"{names}, which exclude_special_tokens leaves out", ""

    def sinks(self) -> tuple[bool | None, str, str]:
        tokens, norms = self._tokens()[0], token_norms(self.alone[1])[0]
        ratio = norms / norms.median()
        special = special_token_mask(tokens, special_token_ids(self.model, True)).to(ratio.device)
        sinks = (ratio > _SINK).nonzero()[:, 0].tolist()
        if not sinks:
            return (
                None,
                f"none: the longest of {len(ratio)} positions is {ratio.max():.1f} × the median",
                "",
            )
        seen = ", ".join(f"position {i} {ratio[i]:.0f} ×" for i in sinks[:3])
        is_left_out = all(bool(special[i]) for i in sinks)
        option = "exclude_special_tokens" if is_left_out else "exclude_outlier_tokens"
        return None, f"{seen} the median norm", f"Train and evaluate with {option}=True."

    def padding(self, side: str) -> Callable[[], tuple[bool | None, str, str]]:
        def look() -> tuple[bool | None, str, str]:
            if self.is_encoder and side == "left":
                return None, "an encoder's texts are padded on the right", ""
            both = self._padded(side)
            n = self.alone[0].shape[1]
            own = both[:1, -n:] if side == "left" else both[:1, :n]
            difference = self._differs(own, self.alone[0])
            advice = "" if difference <= self.tolerance else f"Do not pad on the {side}."
            return difference <= self.tolerance, f"{difference:.1e}", advice

        return look

    def _padded(self, side: str) -> Tensor:
        if not self.is_encoder:
            return self._activations(list(TEXTS), padding_side=side)
        encoded = self.model.tokenizer(
            list(TEXTS),
            padding=True,
            truncation=True,
            max_length=self.n_ctx,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        mask = encoded["attention_mask"].to(device)
        return self._activations(encoded["input_ids"].to(device), attention_mask=mask)

    def attached_exactly(self) -> tuple[bool | None, str, str]:
        self._check_attachable()
        with attached(self.model, self._sae(), use_error_term=True):
            difference = self._differs(self._logits(), self.logits)
        return difference <= self.tolerance, f"{difference:.1e} of the logits", ""

    def attached(self) -> tuple[bool | None, str, str]:
        self._check_attachable()
        with attached(self.model, self._sae()):
            difference = self._differs(self._logits(), self.logits)
        advice = (
            ""
            if difference > self.tolerance
            else "What is written at this hook point does not reach the output: choose another."
        )
        return difference > self.tolerance, f"{difference:.1e} of the logits", advice

    def _check_attachable(self) -> None:
        if not isinstance(self.model, (HookedSAETransformer, SAETransformerBridge)):
            raise ValueError(
                f"a {type(self.model).__name__} takes no SAE: load a HookedSAETransformer or an SAETransformerBridge"
            )

    def afterwards(self) -> tuple[bool | None, str, str]:
        difference = self._differs(self._logits(), self.logits)
        return difference == 0, f"{difference:.1e} of the logits", ""

    def generation(self) -> tuple[bool | None, str, str]:
        if self.is_encoder:
            return None, "the model reads a text as a whole, and writes none", ""
        # What is written has to fit into the context too.
        room = None if self.n_ctx is None else self.n_ctx - _N_GENERATED
        if room is not None and room < 1:
            return None, f"a context of {self.n_ctx} has no room for it", ""
        tokens = self._tokens()[:, :room]
        settings: dict[str, Any] = {
            "max_new_tokens": _N_GENERATED,
            "do_sample": False,
            "stop_at_eos": False,
            "verbose": False,
        }
        with attached(self.model, self._sae()):
            with_cache, without = (
                self.model.generate(
                    tokens, use_past_kv_cache=cache, return_type="tokens", **settings
                )
                for cache in (True, False)
            )
        is_same = torch.equal(with_cache, without)
        n = int((with_cache == without).all(0).sum()) - tokens.shape[1]
        advice = "" if is_same else "Generate with use_past_kv_cache=False."
        return is_same, f"{n} of {_N_GENERATED} tokens, an SAE attached", advice

    def gradients(self) -> tuple[bool | None, str, str]:
        kept: list[Tensor] = []

        def keep(acts: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            # A leaf: weights may be frozen, and those below have no part in it.
            kept.append(acts.detach().requires_grad_())
            return kept[-1]

        with torch.enable_grad():
            logits = self.model.run_with_hooks(
                self._tokens(), fwd_hooks=[(self.hook_name, keep)], return_type="logits"
            )
            loss = logits.float().square().mean()
            # And no gradient is added to the weights' own.
            grad = None
            if loss.requires_grad:
                [grad] = torch.autograd.grad(loss, kept[0], allow_unused=True)
        norm = 0.0 if grad is None else grad.float().norm().item()
        return norm > 0, f"norm {norm:.1e}", ""

    def classes(self) -> tuple[bool | None, str, str]:
        names = class_names(self.model)
        if names is None:
            return None, "no: concept ablation takes a probe, or label words (--label_words)", ""
        return None, ", ".join(map(shown, names)), ""
