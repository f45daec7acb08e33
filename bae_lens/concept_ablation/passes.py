"""Forward passes over texts, with what stands at a hook point edited on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.outlier_tokens import N_REFERENCE_TOKENS, OutlierTokens, reference_norm
from bae_lens.activations.special_tokens import special_token_ids, special_token_mask
from bae_lens.activations.text_batch import TextBatch
from bae_lens.checks.suggest import did_you_mean
from bae_lens.concept_ablation.settings import Readout
from bae_lens.concept_ablation.texts import EncodedTexts
from bae_lens.nn import widened

# Bytes of lower activations that a reader keeps at most.
_MAX_KEPT = 2**30

# Which positions' logits: none, one of each text, or all.
Logits = Int[Tensor, " batch"] | Literal["all"] | None

# Takes activations [batch, pos, d], which it leaves as they are; gives those to go on from.
Edit = Callable[[Tensor], Tensor]


class Seen(NamedTuple):
    """What a pass showed.

    Attributes:
        lower: activations at the lower hook point, as edited.
        upper: at the upper one.
        logits: of the model, at all positions or at one; None where it was stopped before.
    """

    lower: Float[Tensor, "batch pos d_in"]
    upper: Float[Tensor, "batch pos d_out"]
    logits: Float[Tensor, "batch pos vocabulary"] | None


def check_hooks(model: HookedRootModule, hook_names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: if the model lacks one of the hook points.
    """
    for name in hook_names:
        # A Bridge knows names that its hook_dict does not list.
        if name not in model.hook_dict and name not in getattr(model, "_hook_registry", {}):
            raise ValueError(
                f"{type(model).__name__} has no hook point {name!r}, which the concepts are of. "
                f"{did_you_mean(name, model.hook_dict)}"
            )


def run_edited(
    model: HookedRootModule,
    batch: TextBatch,
    hook_names: tuple[str, str],
    edit: Edit | None = None,
    logits_at: Logits = None,
    model_kwargs: Mapping[str, Any] | None = None,
    start: Tensor | None = None,
) -> Seen:
    """One pass, from which gradients flow back to what ``edit`` returned.

    Args:
        model: a hooked language model.
        batch: what it reads.
        hook_names: the lower hook point, which is edited, and the upper one.
        edit: of the lower activations.
        logits_at: go on to the logits, at ``"all"`` positions or at one of each text; otherwise layers
            that no hook point needs are left out.
        model_kwargs: passed to the model.
        start: the residual stream to go on from, in place of the tokens, where ``model_kwargs`` has
            a ``start_at_layer``.

    Raises:
        ValueError: if one of the hook points does not fire.
    """
    seen: dict[str, Tensor] = {}

    def at_lower(acts: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        seen["lower"] = acts if edit is None else edit(acts)
        return seen["lower"]

    def at_upper(acts: Tensor, hook: Any) -> None:  # noqa: ARG001
        seen["upper"] = acts

    def one_of_each(acts: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001
        assert isinstance(logits_at, Tensor)
        rows = torch.arange(len(acts), device=acts.device)
        return acts[rows, logits_at.to(acts.device)][:, None]

    hooks: list[Any] = [(hook_names[0], at_lower), (hook_names[1], at_upper)]
    is_one = isinstance(logits_at, Tensor)
    if is_one and isinstance(model, HookedTransformer):
        # The unembedding is as large as several layers: only what is read is unembedded.
        hooks.append((f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", one_of_each))
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    known = [stop for stop in stops if stop is not None]
    stop = max(known) if len(known) == len(stops) and logits_at is None else None
    logits = model.run_with_hooks(
        batch.tokens if start is None else start,
        return_type="logits",
        fwd_hooks=hooks,
        stop_at_layer=stop,
        **{**batch.model_kwargs, **(model_kwargs or {})},
    )
    for which, name in zip(("lower", "upper"), hook_names, strict=True):
        if which not in seen:
            raise ValueError(f"The hook point {name!r} does not fire in a pass of the model.")
        if seen[which].ndim != 3:
            raise ValueError(
                f"Activations at {name!r} have the shape {tuple(seen[which].shape)}; concepts are "
                "ablated where they are [batch, pos, d], so not where they are split into heads."
            )
    if is_one and not isinstance(model, HookedTransformer):
        logits = one_of_each(logits)
    return Seen(seen["lower"], seen["upper"], None if logits_at is None else logits)


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients for the parameters, so that only those that are asked for are computed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


class Batch(NamedTuple):
    """Some of the texts, without the columns that are padding in all of them.

    Attributes:
        examples: which of the texts.
        text: what the model reads; ``valid`` are tokens that are neither padding nor special in
            SAELens' sense (BOS, EOS, PAD, SEP): [CLS] is one of them.
        read: positions that the sentence vector is the mean of.
        at: ``valid`` or ``read``: where an activation can be ablated.
    """

    examples: Int[Tensor, " batch"]
    text: TextBatch
    read: Bool[Tensor, "batch pos"]
    at: Bool[Tensor, "batch pos"]

    @property
    def position(self) -> Int[Tensor, " batch"]:
        """The one position of each text that is read, if it is one."""
        return self.read.int().argmax(1)


@dataclass(frozen=True, eq=False)
class Reader:
    """Texts, a model that reads them, and two hook points.

    Args:
        model: HookedSAETransformer, SAETransformerBridge, or another model with their interface.
        texts: what is read.
        hook_names: the lower and the upper hook point.
        readout: what a sentence vector is: the activation of the last token, of the first ([CLS]),
            or the mean over those that are valid.
        batch_size: texts per forward pass.
        model_kwargs: passed to the model.
        verbose: show progress bars.
        outliers: tokens that are not valid either, at either hook point, as special ones are not; None:
            there are none.
    """

    model: HookedRootModule
    texts: EncodedTexts
    hook_names: tuple[str, str]
    readout: Readout
    batch_size: int = 16
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False
    outliers: OutlierTokens | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False)
    _outlying: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.texts.tokens)

    def batches(self, desc: str) -> Iterator[Batch]:
        """All texts, those of like lengths together."""
        lengths = self.texts.attention_mask.sum(1)
        order = lengths.argsort(stable=True)
        special = special_token_ids(self.model, True)
        parts = order.split(self.batch_size)
        for part in tqdm(parts, desc=desc, leave=False, disable=not self.verbose):
            width = int(lengths[part].max())
            tokens = self.texts.tokens[part, :width]
            mask = self.texts.attention_mask[part, :width]
            valid = mask & ~special_token_mask(tokens, special)
            if self.outliers is not None:
                valid = valid & ~self._outliers_in(part, TextBatch(tokens, valid, mask))
            if self.readout == "mean":
                read = valid
            else:
                read = torch.arange(width) == self.texts.readout[part][:, None]
            yield Batch(part, TextBatch(tokens, valid, mask), read, valid | read)

    def has_tokens(self) -> Bool[Tensor, " n"]:
        """Which texts have a position that their vector is of: where it is a mean, one that is neither special nor an
        outlier."""
        found = torch.ones(len(self), dtype=torch.bool)
        if self.readout == "mean":
            for batch in self.batches("Looking for outliers"):
                found[batch.examples] = batch.read.any(1)
        return found

    @property
    def n_outliers(self) -> int:
        """Outliers in the texts, as far as they were read."""
        return sum(int(mask.sum()) for mask in self._outlying.values())

    def with_reference(self, multiple: float) -> Reader:
        """The same, without outliers: told by the median norms over the first valid tokens."""
        rows: tuple[list[Tensor], list[Tensor]] = ([], [])
        n = 0
        for batch in self.batches("Reference norms"):
            seen = self.run(batch)
            valid = batch.text.valid.to(seen.lower.device)
            for part, acts in zip(rows, (seen.lower, seen.upper), strict=True):
                part.append(acts.detach()[valid.to(acts.device)])
            n += int(valid.sum())
            if n >= N_REFERENCE_TOKENS:
                break
        if n == 0:
            return self
        norms = {
            name: reference_norm(torch.cat(part))
            for name, part in zip(self.hook_names, rows, strict=True)
        }
        return replace(self, outliers=OutlierTokens(norms, multiple))

    def _outliers_in(self, part: Tensor, text: TextBatch) -> Tensor:
        """True where a valid token is one, from a pass that is made once a batch."""
        key = int(part[0])
        if key not in self._outlying:
            assert self.outliers is not None
            with torch.no_grad():
                seen = run_edited(
                    *(self.model, self._on_device(text), self.hook_names),
                    model_kwargs=self.model_kwargs,
                )
            lower, upper = self.hook_names
            mask = self.outliers.any_mask((lower, seen.lower), (upper, seen.upper))
            self._outlying[key] = mask.to(text.valid.device) & text.valid
        return self._outlying[key]

    def lower(self, batch: Batch) -> Float[Tensor, "batch pos d_in"]:
        """Activations at the lower hook point, without gradients."""
        key = int(batch.examples[0])
        if key in self._kept:
            return self._kept[key]
        name = self.hook_names[0]
        with torch.no_grad():
            acts = run_edited(
                self.model, self._text(batch), (name, name), model_kwargs=self.model_kwargs
            ).lower
        if acts[0, 0].nbytes * self.texts.tokens.numel() <= _MAX_KEPT:
            self._kept[key] = acts
        return acts

    def run(self, batch: Batch, edit: Edit | None = None, logits_at: Logits = None) -> Seen:
        """One pass, see ``run_edited``. Layers up to the lower hook point run once a batch, if the
        model can start above them."""
        text, layer = self._text(batch), self._first_layer
        if layer is None:
            return run_edited(self.model, text, self.hook_names, edit, logits_at, self.model_kwargs)
        lower = self.lower(batch)
        lower = lower if edit is None else edit(lower)
        seen = run_edited(
            self.model,
            text,
            (self.hook_names[1], self.hook_names[1]),
            None,
            logits_at,
            # The tokens are for whoever has attached an SAE to the layers above.
            {"start_at_layer": layer, "tokens": text.tokens, **self.model_kwargs},
            start=lower,
        )
        return Seen(lower, seen.upper, seen.logits)

    def _text(self, batch: Batch) -> TextBatch:
        return self._on_device(batch.text)

    def _on_device(self, text: TextBatch) -> TextBatch:
        device = next(self.model.parameters()).device
        return TextBatch(*(x.to(device) for x in text if x is not None))

    @property
    def _first_layer(self) -> int | None:
        """The first layer that sees what stands at the lower hook point, where that is all it sees."""
        below, above = map(extract_stop_at_layer_from_tlens_hook_name, self.hook_names)
        is_residual = re.fullmatch(r"blocks\.\d+\.hook_resid_post", self.hook_names[0])
        can_start = is_residual is not None and isinstance(self.model, HookedTransformer)
        return below if can_start and below and above and below < above else None


def pool(acts: Float[Tensor, "batch pos d"], read: Bool[Tensor, "batch pos"]) -> Tensor:
    """Sentence vectors ``[batch, d]``: the mean over the positions that are read, in float32 at least; NaN of a text
    of which none is (``Reader.has_tokens``)."""
    acts = widened(acts)
    weights = read.to(acts)
    return torch.einsum("bpd,bp->bd", acts, weights) / weights.sum(1, keepdim=True)
