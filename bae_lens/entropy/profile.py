"""Entropy of hidden states by layer and token position (arXiv 2509.20997, §4.2)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.outlier_tokens import OutlierTokens, multiple_of, reference_norm
from bae_lens.activations.special_tokens import text_start
from bae_lens.activations.texts import MissingTexts, check_text, is_missing
from bae_lens.architectures.bae import TrainingBAEConfig
from bae_lens.checks.fields import ListOf, Text, check, is_valid, shown, whole
from bae_lens.entropy.cells import Cell, Settings, measure
from bae_lens.entropy.hidden_states import check_tokenizer, hidden_states, tokenize
from bae_lens.entropy.result import EntropyProfile, overfit_warning

logger = logging.getLogger(__name__)

_TEXTS_AT_A_TIME = 256
# The entropy of a cell rests on which of its positions are taken, which no seed of an estimate changes.
_POSITION_SEED = 0


def entropy_profile(
    model: Any,
    dataset: Iterable[Any],
    hooks: Sequence[str],
    positions: Sequence[int | tuple[int, int]],
    *,
    max_unexplained: float,
    n_sequences: int = 4000,
    vectors_per_sequence: int | None = None,
    held_out_share: float = 0.2,
    seeds: Sequence[int] = (0, 1, 2),
    cfg: TrainingBAEConfig | None = None,
    starts: Sequence[float] = (0.04,),
    steps: int = 400,
    batch_size: int = 512,
    lr: float = 2e-3,
    gaussian_control: bool = True,
    model_batch_size: int = 32,
    text_column: str = "text",
    device: str | None = None,
    verbose: bool = False,
    exclude_outlier_tokens: bool | float | OutlierTokens = True,
) -> EntropyProfile:
    """How many bits hidden states hold at a stated fidelity, by layer and token position.

    The model reads the first ``n_sequences`` texts that are long enough once, for all hooks and
    positions, each text by itself, with BOS before it where the model has it there
    (``cfg.default_prepend_bos``): a position is a position in the text. For each cell and seed the texts are split, a BAE is trained and pruned, and its code is scored on the
    texts held out (``estimate_entropy``).

    All cells have the same texts and equally many vectors of each, since an estimate depends on how
    many there are. Fidelity is relative to each cell's own variance, so a cell whose states are
    merely larger has no more entropy.

    The control ``"gaussian"`` puts vectors from a Gaussian of the same mean and covariance through
    the very same estimate: where it follows the curve, the curve says nothing that the covariance
    does not.

    Args:
        model: a HookedTransformer or TransformerBridge with a tokenizer, of causal attention.
        dataset: rows with a column of text (a ``datasets.Dataset``, streaming or not), or texts.
        hooks: names of hook points; those of a bridge have names of their own.
        positions: from 1, which is the first token after BOS or, without one, the second; or ranges (first, last), both included,
            whose positions are pooled into one cell. Where every text begins with the same token,
            as those of ``bae-lens/movie-reviews`` do, position 1 says nothing and is refused.
        max_unexplained: share of each cell's variance that may be left unexplained.
        n_sequences: texts to read. Fewer are taken, with a logged warning, where there are no more.
        vectors_per_sequence: positions of a range that are taken from each text, at random; as many
            as the narrowest range has if omitted. More of one text are worth less than more texts.
        held_out_share: share of the texts that are held out, drawn anew with each seed.
        seeds: of split, weights and shuffles; at least two for an interval.
        cfg: what to train: by default two bits an input dimension, no density cap, and an entropy
            coefficient that follows the fidelity (``target_unexplained_variance``). Where there are few
            vectors, fewer bits overfit less.
        starts, steps, batch_size, lr: see ``estimate_entropy``.
        gaussian_control: run the control, which doubles the time.
        model_batch_size: texts per forward pass.
        text_column: of the dataset.
        device: where to train; the model's if omitted.
        verbose: show progress bars.
        exclude_outlier_tokens: leave out the texts of which a hidden state that would be taken is an
            outlier (an attention sink, see ``bae_lens.activations.outlier_tokens``), in all cells alike; the
            reference norm of a hook is the median over what is taken there. Or the multiple of it, or
            ``OutlierTokens``; False: none are left out.

    Returns:
        Rows by hook, cell, control and seed, with a table and a plot.

    Raises:
        ValueError: before the model reads any text, if a position is 0, out of order or beyond the
            model's context, a hook is not the model's, the texts of a cell all begin alike, or there
            are too few vectors for the batch or the bits; later, if hidden states do not vary.
    """
    labels, ranges = _checked_positions(positions)
    n_sequences = check("n_sequences", n_sequences, whole(2))
    model_batch_size = check("model_batch_size", model_batch_size, whole(1))
    vectors_per_sequence = check(
        "vectors_per_sequence", vectors_per_sequence, whole(1, or_none=True)
    )
    hooks = check("hooks", hooks, ListOf(Text(), distinct=True))
    settings = Settings(
        max_unexplained,
        held_out_share,
        *(seeds, cfg, starts, steps, batch_size, lr),
        device=device or str(next(model.parameters()).device),
    )
    narrowest = min(last - first + 1 for first, last in ranges)
    per_text = narrowest if vectors_per_sequence is None else vectors_per_sequence
    if per_text > narrowest:
        raise ValueError(
            f"vectors_per_sequence must be from 1 to {narrowest}, the width of the narrowest range of "
            f"positions; got {per_text}."
        )
    longest = max(last for _, last in ranges)
    if longest >= model.cfg.n_ctx:
        raise ValueError(
            f"Position {longest} is beyond the model's context of {model.cfg.n_ctx} tokens, whose last "
            f"position is {model.cfg.n_ctx - 1}."
        )
    widths = [hook_width(model, hook) for hook in hooks]
    check_tokenizer(model)
    tokens, n_too_short = _long_enough(
        model, _texts(dataset, text_column), longest + 1, n_sequences
    )
    for label, (_, last) in zip(labels, ranges, strict=True):
        if bool((tokens[:, : last + 1] == tokens[0, : last + 1]).all()):
            raise ValueError(
                f"All texts are the same up to position {last}, so the hidden states at {label} do not "
                "vary. Begin later."
            )
    for width in widths:
        settings.check_size(len(tokens), per_text, width)

    picked = _pick(ranges, len(tokens), per_text)
    states = hidden_states(
        model, hooks, list(tokens), torch.cat(picked, dim=1), model_batch_size, verbose
    )
    states, n_outlier_texts = _without_outliers(states, exclude_outlier_tokens)
    n_texts = len(tokens) - n_outlier_texts
    for width in widths if n_outlier_texts else ():
        settings.check_size(n_texts, per_text, width)
    cells = (
        Cell(hook, label, (first + last) / 2, None, acts)
        for hook in hooks
        for label, (first, last), acts in zip(
            labels, ranges, states[hook].split(per_text, dim=1), strict=True
        )
    )
    rows = tuple(measure(cells, settings, gaussian_control, verbose))
    profile = EntropyProfile(
        rows, "token position", max_unexplained, n_texts, n_too_short, n_outlier_texts
    )
    if (warning := overfit_warning(profile)) is not None:
        logger.warning(warning)
    return profile


def _without_outliers(
    states: dict[str, Tensor], exclude: bool | float | OutlierTokens
) -> tuple[dict[str, Tensor], int]:
    """States ``[n, k, width]`` without the texts that have an outlier at a hook, and how many those are."""
    multiple = multiple_of(exclude)
    if multiple is None:
        return states, 0
    any_outlier = torch.zeros(len(next(iter(states.values()))), dtype=torch.bool)
    for hook, acts in states.items():
        outliers = exclude
        if not isinstance(outliers, OutlierTokens):
            outliers = OutlierTokens({hook: reference_norm(acts.flatten(0, 1))}, multiple)
        any_outlier |= outliers.mask(acts, hook).any(1)
    n = int(any_outlier.sum())
    if n > 0:
        logger.warning(
            "%d of %d texts are left out: a hidden state of theirs is above %g times the reference norm.",
            *(n, len(any_outlier), multiple),
        )
        states = {hook: acts[~any_outlier] for hook, acts in states.items()}
    return states, n


def _checked_positions(
    positions: Sequence[int | tuple[int, int]],
) -> tuple[list[str], list[tuple[int, int]]]:
    """Labels and ranges of the cells."""
    if len(positions) == 0:
        raise ValueError("positions is empty; give at least one position or range.")
    ranges = [_range_of(position) for position in positions]
    for first, last in ranges:
        if first == 0:
            raise ValueError(
                "Position 0 is BOS or the first word: the former is the same in every text, and of "
                "either the hidden state is a hundred times longer than any other in many models. "
                "Begin at position 1."
            )
        if not 1 <= first <= last:
            raise ValueError(
                f"A range of positions goes from 1 or more up to its last, both included; got "
                f"({first}, {last})."
            )
    labels = [f"{first}" if first == last else f"{first}–{last}" for first, last in ranges]
    if len(set(labels)) < len(labels):
        raise ValueError(f"positions must be different ones; got {list(positions)}.")
    return labels, ranges


def _range_of(position: int | tuple[int, int]) -> tuple[int, int]:
    number = whole(None)
    first, last = (
        position if isinstance(position, (tuple, list)) and len(position) == 2 else [position] * 2
    )
    if not (is_valid(first, number) and is_valid(last, number)):
        raise ValueError(
            "positions must be whole numbers, or ranges (first, last) of them; one is "
            f"{shown(position)}."
        )
    return int(first), int(last)  # pyright: ignore[reportArgumentType]


def _texts(dataset: Iterable[Any], column: str) -> Iterator[str]:
    is_table = False
    missing = MissingTexts()
    number = 0
    for number, row in enumerate(dataset, start=1):
        if isinstance(row, Mapping):
            is_table = True
            if column not in row:
                raise ValueError(
                    f"The dataset has no column {column!r}; it has {', '.join(map(str, row))}. Name the "
                    "one with the text as text_column."
                )
        text = row[column] if isinstance(row, Mapping) else row
        if is_missing(text):
            missing.pass_over(number)
        else:
            what = f"The {column!r} of row {number}" if is_table else f"Text {number}"
            yield check_text(text, what)
    missing.at_end(number)


def _long_enough(
    model: Any, texts: Iterator[str], length: int, n_sequences: int
) -> tuple[Tensor, int]:
    """Tokens ``[n, length]`` of the first texts that have so many, and how many had not."""
    kept: list[Tensor] = []
    n_own = length - len(text_start(model, add_special_tokens=False).added)
    n_too_short = 0
    while len(kept) < n_sequences and (some := list(islice(texts, _TEXTS_AT_A_TIME))):
        for ids in tokenize(model, some):
            if len(kept) == n_sequences:
                break
            if len(ids) < length:
                n_too_short += 1
            else:
                kept.append(ids[:length])
    if len(kept) < 2:
        raise ValueError(
            f"{len(kept)} of {len(kept) + n_too_short} texts have the {n_own} tokens that the last "
            "position needs; at least two must. Give longer texts or earlier positions."
        )
    message = "%d of %d texts were passed over: they have fewer than %d tokens."
    logger.info(message, n_too_short, n_too_short + len(kept), n_own)
    if len(kept) < n_sequences:
        logger.warning(
            "There are only %d texts of at least %d tokens, not %d; %d were shorter.",
            *(len(kept), n_own, n_sequences, n_too_short),
        )
    return torch.stack(kept), n_too_short


def _pick(ranges: list[tuple[int, int]], n: int, per_text: int) -> list[Tensor]:
    """For each range, which of its positions are taken of each text, ``[n, per_text]``."""
    generator = torch.Generator().manual_seed(_POSITION_SEED)
    picked = []
    for first, last in ranges:
        order = torch.rand(n, last - first + 1, generator=generator).argsort(dim=1)
        picked.append(first + order[:, :per_text].sort(dim=1).values)
    return picked
