"""All that is counted and kept of a dictionary's firings, filled block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bae_lens.examples.coder import Coder
from bae_lens.examples.corpus import TokenBlock, margins_of, place_dtype
from bae_lens.examples.corpus_tokens import CorpusSample
from bae_lens.examples.histogram import N_BINS, LevelCounts, bins_of, histogram_of
from bae_lens.examples.lemmas import lemma_table
from bae_lens.examples.pair_counts import MAX_PAIRED, PairCounts, nearest_in_codebook
from bae_lens.examples.records import (
    LEAST_FOR_LIFT,
    CorpusToken,
    Count,
    Example,
    ExampleSettings,
    LatentRecord,
    Neighbor,
    Strength,
)
from bae_lens.examples.reservoir import FiringKeys, Reservoir, strongest_first
from bae_lens.examples.token_counts import TokenCounts, lifts_of, row_of, top_of
from bae_lens.examples.token_text import TokenStrings, examples_of
from bae_lens.examples.window_values import WindowValues
from bae_lens.nn import levels_of_entries

logger = logging.getLogger(__name__)

# Pairs of token and latent that are looked through at a time for bits that are off.
_MAX_PAIRS = 2**21


class _Counted(NamedTuple):
    """Counts of tokens or lemmas: by group ``[n_groups, k]``, in all ``[k]``, and what each is called."""

    counts: Any
    totals: NDArray[np.int64]
    name: Callable[[int], str]


class Collector:
    """All that is counted and kept, filled block by block.

    Of one-bit codes both values are kept track of, for which of them is the rarer is known only at
    the end: latent ``j`` being off is group ``n_latents + j``. Examples are exact in both; the tokens
    of a bit are those of the value that has been rarer up to then, in blocks of a few thousand.

    Args:
        n_latents: number of latents.
        strength: what kind of code it is, see ``LatentRecords.strength``.
        settings: what to keep.
        n_classes: of the labels; 0 without.
        level_values: of a code of levels, see ``Dictionary.level_values``.
    """

    def __init__(
        self,
        n_latents: int,
        strength: Strength,
        settings: ExampleSettings,
        n_classes: int,
        level_values: Tensor | None = None,
    ) -> None:
        self.n_latents, self.settings, self.n_classes = n_latents, settings, n_classes
        self.are_bits, self.is_one_hot = strength == "surprise", strength == "nearness"
        self.level_values = None if level_values is None else level_values.cpu()
        n_groups = 2 * n_latents if self.are_bits else n_latents
        place = place_dtype(settings)
        n_window = settings.n_left + 1 + settings.n_right
        self.keys = FiringKeys(settings.seed, n_latents)
        self.strongest = Reservoir(n_groups, settings.n_strongest, place, n_window)
        self.random = Reservoir(n_groups, settings.n_random, place, n_window)
        # Of bits: as many as the strongest, which those are in place of where random ones are wanted.
        self.more_random = None
        if self.are_bits:
            self.more_random = Reservoir(n_groups, settings.n_strongest, place, n_window)
        self.n_left_out = 0
        self.corpus_sample = None
        if settings.n_corpus_tokens > 0:
            self.corpus_sample = CorpusSample(
                settings.n_corpus_tokens, n_latents, place, settings.seed
            )
        self.tokens = TokenCounts(n_groups, settings.n_counters)
        # Bins of activations, or levels: there is a counter for each, so that none is short.
        n_values = N_BINS if self.level_values is None else self.level_values.shape[1]
        self.values = TokenCounts(n_groups, n_values)
        # Index of the first token in a corpus of which others read other parts.
        self.first_token = 0
        self.n_tokens, self.n_texts = 0, 0
        self.n_on = np.zeros(n_latents, dtype=np.int64)
        self.token_totals = np.zeros(1, dtype=np.int64)
        self.class_counts = np.zeros((n_latents, n_classes), dtype=np.int64)
        self.class_totals = np.zeros(n_classes, dtype=np.int64)
        self.pairs = None
        self._last_text = -1
        if settings.n_neighbors > 0 and strength != "nearness":
            if n_latents <= MAX_PAIRED:
                self.pairs = PairCounts(n_latents)
            else:
                logger.warning(
                    "There are no neighbors: pairs are counted of %d latents at most, and there "
                    "are %d.",
                    *(MAX_PAIRED, n_latents),
                )

    @property
    def when_off(self) -> NDArray[np.bool_]:
        """``[n_latents]``: bits that have been on for more than half of the tokens."""
        return self.are_bits & (2 * self.n_on > self.n_tokens)

    def update(self, block: TokenBlock) -> None:
        """Take in the next tokens of the corpus.

        The tokens kept of frequent latents depend on where blocks end, all else does not.
        """
        rows = np.repeat(np.arange(len(block)), np.diff(block.firings.indptr))
        latents = block.firings.indices.astype(np.int64)
        token_keys = self.keys.of_tokens(self.first_token + self.n_tokens + np.arange(len(block)))
        windows = WindowValues(block, self.is_one_hot)
        self._keep_examples(block, rows, latents, token_keys, windows)
        if self.are_bits:
            self._keep_examples_of_off(block, token_keys, windows)
        if self.corpus_sample is not None:
            self.corpus_sample.update(block, token_keys)
        self.n_tokens += len(block)
        if block.n_left_out is not None:
            self.n_left_out += int(block.n_left_out.sum())
        self.n_on += np.bincount(latents, minlength=self.n_latents)
        texts = block.places["text"]
        self.n_texts += int((np.diff(texts, prepend=self._last_text) != 0).sum())
        self._last_text = texts[-1]
        self._count_tokens(block, rows, latents)
        if self.n_classes > 0:
            pairs = latents * self.n_classes + block.classes[rows]
            counts = np.bincount(pairs, minlength=self.class_counts.size)
            self.class_counts += counts.reshape(self.class_counts.shape)
            self.class_totals += np.bincount(block.classes, minlength=self.n_classes)
        if self.pairs is not None:
            self.pairs.update(block.firings)

    def merge(self, other: Collector) -> None:
        """Take in what another has collected of other texts, its settings and seed being the same."""
        for name in (
            "strongest",
            "random",
            "more_random",
            "corpus_sample",
            "tokens",
            "values",
            "pairs",
        ):
            if (part := getattr(self, name)) is not None:
                part.merge(getattr(other, name))
        width = max(len(self.token_totals), len(other.token_totals))
        totals = np.zeros(width, dtype=np.int64)
        for of_one in (self.token_totals, other.token_totals):
            totals[: len(of_one)] += of_one
        self.token_totals = totals
        for name in ("n_left_out", "n_tokens", "n_texts", "n_on", "class_counts", "class_totals"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def latents(self, coder: Coder, strings: TokenStrings) -> Iterator[LatentRecord]:
        """What was seen of each latent, in order.

        Args:
            coder: the dictionary, for the neighbors of its codes.
            strings: of the model's tokenizer.
        """
        when_off = self.when_off
        n_firings = np.where(when_off, self.n_tokens - self.n_on, self.n_on)
        groups = np.arange(self.n_latents) + self.n_latents * when_off
        errors = self.tokens.short_by[groups] + n_firings - self.tokens.n_counted[groups]
        classes = (
            np.where(when_off[:, None], self.class_totals - self.class_counts, self.class_counts)
            / np.maximum(n_firings, 1)[:, None]
        )
        tokens = _Counted(self.tokens.counts, self.token_totals, strings)
        lemmas = self._lemmas(strings)
        for j, neighbors in enumerate(self._neighbors(coder)):
            group, n = int(groups[j]), int(n_firings[j])
            rate = n / self.n_tokens
            surprise = -float(np.log2(rate)) if self.are_bits and n > 0 else None
            lemma_counts = None if lemmas is None else self._top(lemmas, group, n)
            yield LatentRecord(
                index=j,
                when_off=bool(when_off[j]),
                n_firings=n,
                rate=rate,
                strongest=self._examples(self.strongest, group, strings, surprise),
                random=self._examples(self.random, group, strings, surprise),
                top_tokens=self._top(tokens, group, n),
                lift_tokens=self._of_highest_lift(tokens, group, n),
                count_error=int(errors[j]),
                top_lemmas=lemma_counts and tuple(c._replace(token=None) for c in lemma_counts),
                neighbors=neighbors,
                class_shares=tuple(classes[j].tolist()) if self.n_classes > 0 else None,
                more_random=None
                if self.more_random is None
                else self._examples(self.more_random, group, strings, surprise),
                histogram=histogram_of(*row_of(self.values.counts, group))
                if self.level_values is None
                else None,
                levels=self._levels(j),
            )

    def corpus_tokens(self, strings: TokenStrings) -> tuple[CorpusToken, ...] | None:
        """Tokens drawn at random, with what fires at each; None where none were asked for."""
        sample = self.corpus_sample
        if sample is None:
            return None
        examples = examples_of(sample.reservoir, 0, strings, self.settings.n_left, 0.0)
        return tuple(
            CorpusToken(one, sample.firing(one.text, one.position, self.when_off))
            for one in examples
        )

    # Parts

    def _keep_examples(
        self,
        block: TokenBlock,
        rows: NDArray[np.int64],
        latents: NDArray[np.int64],
        token_keys: NDArray[np.uint64],
        windows: WindowValues,
    ) -> None:
        keys = token_keys[rows] + self.keys.of_latents[latents]
        strengths = block.firings.data
        if self.more_random is not None:
            # All bits are equally strong, and what tells one's firings apart is the margin.
            strengths = margins_of(block)[rows, latents].astype(np.float32)
            self.more_random.offer(latents, ~keys, strengths, rows, block.places, windows)
        # An activation below 0 fires as strongly as one above; of a code the nearest is that of the least distance.
        sizes = strengths if self.is_one_hot else np.abs(strengths)
        self.strongest.offer(
            latents, strongest_first(sizes, keys), strengths, rows, block.places, windows
        )
        self.random.offer(latents, keys, strengths, rows, block.places, windows)

    def _keep_examples_of_off(
        self, block: TokenBlock, token_keys: NDArray[np.uint64], windows: WindowValues
    ) -> None:
        """Bits that are off are many, so only those are listed that would be kept."""
        assert self.more_random is not None
        n_rows = max(1, _MAX_PAIRS // self.n_latents)
        for begin in range(0, len(block), n_rows):
            is_off = block.firings[begin : begin + n_rows].toarray() == 0
            keys = token_keys[begin : begin + n_rows, None] + self.keys.of_latents
            margins = margins_of(block)[begin : begin + n_rows].astype(np.float32)
            for reservoir, priorities in (
                (self.strongest, strongest_first(margins, keys)),
                (self.more_random, ~keys),
                (self.random, keys),
            ):
                limits = reservoir.limits[self.n_latents :]
                rows, latents = (is_off & (priorities < limits)).nonzero()
                reservoir.offer(
                    self.n_latents + latents,
                    priorities[rows, latents],
                    margins[rows, latents],
                    begin + rows,
                    block.places,
                    windows,
                )

    def _count_tokens(
        self, block: TokenBlock, rows: NDArray[np.int64], latents: NDArray[np.int64]
    ) -> None:
        totals = np.bincount(block.tokens, minlength=len(self.token_totals))
        totals[: len(self.token_totals)] += self.token_totals
        self.token_totals = totals
        off = np.flatnonzero(self.when_off)
        values = block.firings.data
        groups = latents
        if len(off) > 0:
            is_counted = ~self.when_off[latents]
            rows_off, columns = (block.firings[:, off].toarray() == 0).nonzero()
            rows = np.concatenate([rows[is_counted], rows_off])
            latents = np.concatenate([latents[is_counted], off[columns]])
            groups = latents + self.n_latents * self.when_off[latents]
        self.tokens.update(groups, block.tokens[rows])
        if self.level_values is not None:
            levels = levels_of_entries(
                torch.from_numpy(values), torch.from_numpy(latents), self.level_values
            )
            self.values.update(groups, levels.numpy() - 1)
        elif not self.are_bits:
            self.values.update(groups, bins_of(values))
        elif block.margins is not None:
            self.values.update(groups, bins_of(block.margins[rows, latents]))

    def _top(self, counted: _Counted, group: int, n_firings: int) -> tuple[Count, ...]:
        tops = []
        for k, n in top_of(counted.counts, group, self.settings.n_top_tokens):
            share_of_all = float(counted.totals[k]) / self.n_tokens
            tops.append(Count(counted.name(k), n, n / n_firings / share_of_all, k))
        return tuple(tops)

    def _of_highest_lift(self, counted: _Counted, group: int, n_firings: int) -> tuple[Count, ...]:
        lifts = lifts_of(counted.counts, counted.totals, group, LEAST_FOR_LIFT)
        n_of = dict(zip(*row_of(counted.counts, group), strict=True))
        return tuple(
            Count(counted.name(k), n_of[k], lift * self.n_tokens / n_firings, k)
            for k, lift in top_of(lifts, 0, self.settings.n_top_tokens)
        )

    def _examples(
        self, reservoir: Reservoir, group: int, strings: TokenStrings, surprise: float | None
    ) -> tuple[Example, ...]:
        return examples_of(
            reservoir, group, strings, self.settings.n_left, surprise, has_margins=self.are_bits
        )

    def _levels(self, latent: int) -> LevelCounts | None:
        if self.level_values is None:
            return None
        values = self.level_values[latent].tolist()
        n_of = dict(zip(*row_of(self.values.counts, latent), strict=True))
        return LevelCounts(tuple(values), tuple(n_of.get(k, 0) for k in range(len(values))))

    def _lemmas(self, strings: TokenStrings) -> _Counted | None:
        language = self.settings.lemmas
        if language is None:
            return None
        seen = [strings(t) if total else "" for t, total in enumerate(self.token_totals.tolist())]
        names, table = lemma_table(seen, language)
        counts = self.tokens.counts
        of_lemmas = counts @ table[: counts.shape[1]]
        return _Counted(of_lemmas, self.token_totals @ table, names.__getitem__)

    def _neighbors(self, coder: Coder) -> Iterable[tuple[Neighbor, ...] | None]:
        n = self.settings.n_neighbors
        if n > 0 and coder.strength == "nearness":
            return nearest_in_codebook(coder.codebook, n)
        if self.pairs is None:
            return repeat(None, self.n_latents)
        return self.pairs.neighbors(self.n_tokens, self.when_off, n)
