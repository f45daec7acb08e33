"""Evidence that is made up, small or large, harmless or hostile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from bae_lens.examples import Count, Example, ExampleSettings, LatentRecord, LatentRecords, Neighbor
from bae_lens.examples.histogram import bins_of, histogram_of
from bae_lens.report import CodedSentence, write_report
from bae_lens.scoring import ComSemResult, ComSemSettings, IntruderResult, IntruderSettings
from bae_lens.scoring.comsem_result import LatentRun, Protocol, Votes
from bae_lens.scoring.intruder_result import LatentTrials, Tally
from bae_lens.steering import LogitEffects, TokenEffect

N_TOKENS = 10_000
WORDS = tuple(f" word{i}" for i in range(40))
# Each does something where it is not treated as text.
HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    '" onmouseover="window.pwned = 1" x="',
    "<!--<script>",
    "]]>&lt;b&gt;&amp;",
    "{{script}}{{data}}${7*7}{% raw %}",
    "javascript:window.pwned=1",
    "\u202egnp.exe\u2066\u200b\u00ad",
    "\ud800 and \udfff",
    "\u2028\u2029\x00\x1b\x7f\n\t\r",
    "\ufeff\U000e0041\u3164",
    "__proto__",
    "\\u003c\\",
)


def example(strings: Sequence[str], marked: int, strength: float, text: int = 0) -> Example:
    return Example(tuple(range(len(strings))), marked, strength, text, marked, tuple(strings))


def make_records(
    n_latents: int = 12,
    words: tuple[str, ...] = WORDS,
    n_examples: int = 3,
    n_window: int = 9,
    strength: str = "activation",
    seed: int = 0,
    **changes: Any,
) -> LatentRecords:
    """Random windows of words, as Zipf has them. Latent ``j`` marks word ``j``, the last never fires."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()

    def examples(j: int) -> tuple[Example, ...]:
        windows = rng.choice(len(words), size=(n_examples, n_window), p=weights)
        windows[:, n_window // 2] = j % len(words)
        strengths = np.sort(rng.random(n_examples) * 10 + 0.5)[::-1]
        if strength == "nearness":
            strengths = -strengths[::-1]
        if strength == "surprise":
            strengths[:] = 3.25
        return tuple(
            example([words[i] for i in window], n_window // 2, float(value), text)
            for text, (window, value) in enumerate(zip(windows, strengths, strict=True))
        )

    def latent(j: int) -> LatentRecord:
        fires = j < n_latents - 1
        n = int(2 + 2000 / (j + 1)) if fires else 0
        counts = rng.permutation(len(words))[: min(10, len(words) - 1)].tolist()
        tokens = [j % len(words), *(i for i in counts if i != j % len(words))]
        return LatentRecord(
            index=j,
            when_off=strength == "surprise" and j == 1,
            n_firings=n,
            rate=n / N_TOKENS,
            strongest=examples(j) if fires else (),
            random=examples(j) if fires else (),
            top_tokens=tuple(
                Count(words[i], 100 - k, 20.0 / (k + 1), i) for k, i in enumerate(tokens[:10])
            )
            if fires
            else (),
            count_error=3 if j == 2 else 0,
            top_lemmas=(Count("word", 90, 4.5, None),) if fires and j == 0 else None,
            neighbors=tuple(
                Neighbor((j + k) % n_latents, 0.5 / k, None if strength == "nearness" else 7)
                for k in (1, 2)
            ),
            class_shares=(0.75, 0.25) if fires else (0.0, 0.0),
        )

    settings = {
        "dictionary": "bae",
        "hook_name": "blocks.1.hook_resid_post",
        "strength": strength,
        "neighbor_measure": "distance" if strength == "nearness" else "phi",
        "n_tokens": N_TOKENS,
        "n_texts": 500,
        "settings": ExampleSettings(),
        "latents": tuple(map(latent, range(n_latents))),
        "class_names": ("negative", "positive"),
        "class_shares": (0.5, 0.5),
    }
    return LatentRecords(**{**settings, **changes})


def with_windows(records: LatentRecords, share: float = 0.12) -> LatentRecords:
    """The same with what each latent has at the tokens of its windows, and how strongly it fires: at every
    eighth token or so (``share``), less than at the marked one, whose strength is the greatest of the window; the
    first token does not count."""
    rng = np.random.default_rng(0)
    is_code = records.strength == "nearness"

    def with_values(e: Example) -> Example:
        own = 2.5 if records.strength == "surprise" else e.strength
        size = rng.uniform(0.1, 1, len(e.tokens)) * (rng.random(len(e.tokens)) < share)
        size[e.marked] = 1
        values = [float(f"{x * own:.4g}") if x or not is_code else None for x in size]
        margin = own if records.strength == "surprise" else None
        return e._replace(activations=(None, *values[1:]), margin=margin)

    def with_counts(latent: LatentRecord) -> LatentRecord:
        bins, counts = np.unique(bins_of(rng.lognormal(0, 1, latent.n_firings)), return_counts=True)
        return replace(
            latent,
            strongest=tuple(map(with_values, latent.strongest)),
            random=tuple(map(with_values, latent.random)),
            histogram=histogram_of(bins.tolist(), counts.tolist()),
        )

    return replace(records, latents=tuple(map(with_counts, records.latents)))


def many(records: LatentRecords, n: int) -> LatentRecords:
    """Its latents again and again, which is soon made."""
    latents = (replace(records[j % len(records)], index=j) for j in range(n))
    return replace(records, latents=tuple(latents))


def make_sentences(
    n: int = 6,
    n_latents: int = 12,
    words: tuple[str, ...] = WORDS,
    n_codes: int = 3,
) -> list[CodedSentence]:
    """Of five to nine words, the first of which has no code."""
    sentences = []
    for s in range(n):
        length = 5 + s % 5
        strings = tuple(words[(s * 3 + t) % len(words)] for t in range(length))
        codes = [
            tuple(((s + t + k) % (n_latents - 1), 4.0 - k) for k in range(n_codes))
            for t in range(1, length)
        ]
        sentences.append(CodedSentence(strings, ((), *codes), "positive" if s % 2 else None))
    return sentences


def make_intruder(records: LatentRecords, n_latents: int, **changes: Any) -> IntruderResult:
    """The first so many latents, of which the first is always heard, and the control never is. Of 20
    trials in two seeds."""

    def trials(j: int, n_right: int, purity: float) -> LatentTrials:
        of_seed = (Tally(n_right, 10 - n_right, 0),) * 2
        hard = (Tally(n_right // 2, 10 - n_right // 2, 0),) * 2
        return LatentTrials(j, 10, purity, of_seed, hard)

    own = {
        "dictionary": records.dictionary,
        "hook_name": records.hook_name,
        "judge": "embeddings of a test",
        "caveat": "It hears nothing else.",
        "settings": IntruderSettings(n_trials=10, n_seeds=2),
        "n_latents": len(records),
        "n_firing": len(records) - 1,
        "n_enough": len(records) - 1,
        "latents": tuple(trials(j, max(10 - j, 2), 0.5) for j in range(n_latents)),
        "control": tuple(trials(j, 2, 0.1) for j in range(n_latents)),
    }
    return IntruderResult(**own | changes)


def make_comsem(
    records: LatentRecords,
    n_latents: int,
    protocol: Protocol = "balanced",
    phrase: str = "words like",
    **changes: Any,
) -> ComSemResult:
    """The first so many latents. The second seed's phrases hold best; latent 1 has none."""
    n_runs = 2 if protocol == "balanced" else 1

    def run(j: int, s: int) -> LatentRun:
        if j == 1:
            return LatentRun(j, s, "no pattern" if s == 0 else "no answer")
        negatives = {"random": Votes(1 - s, 3 + s), "hard": Votes(1, 3)}
        negatives = negatives if protocol == "balanced" else {}
        return LatentRun(j, s, "explained", f"{phrase} {j}, {s}", Votes(8, 0), **negatives)

    own = {
        "dictionary": records.dictionary,
        "hook_name": records.hook_name,
        "judge": "a model",
        "caveat": "It may know the corpus.",
        "settings": ComSemSettings(protocol, n_seeds=2),
        "n_latents": len(records),
        "n_firing": len(records) - 1,
        "n_enough": len(records) - 1,
        "has_hard": protocol == "balanced",
        "runs": tuple(run(j, s) for j in range(n_latents) for s in range(n_runs)),
    }
    return ComSemResult(**own | changes)


SUMMARY = {
    "code": {
        "explained_variance": 0.7123456,
        "l0": 31.5,
        "dead_share": 1 / 12,
        "marginal_entropy": 120.25,
        "chow_liu_entropy": None,
        "is_one_bit": True,
        "of_its_own_kind": 3,
    },
    "reconstruction_quality": {"mse": float("nan"), "cossim": 0.9},
}
TRAINING = {
    "details/n_training_samples": [1000.0 * i for i in range(1, 901)],
    "metrics/entropy": [float("nan"), *(200 - 0.1 * i for i in range(899))],
}


def make_effects(n_latents: int, words: tuple[str, ...] = WORDS, k: int = 8) -> list[LogitEffects]:
    """Of all latents but the last."""

    def end(latent: int, sign: int) -> tuple[TokenEffect, ...]:
        return tuple(
            TokenEffect(i, words[(latent + i) % len(words)], sign * 12.5 / (i + 1))
            for i in range(k)
        )

    return [LogitEffects(j, end(j, 1), end(j, -1)) for j in range(n_latents - 1)]


def write_hostile(path: Path) -> int:
    """A report in which every text is hostile, and how many latents it is of."""
    words = (*HOSTILE, " plain")
    n = len(words) + 1
    records = with_windows(
        make_records(n, words, class_names=HOSTILE[:2], dictionary=HOSTILE[1]), 0.5
    )
    said: dict[str, Any] = {
        "phrase": HOSTILE[0],
        "judge": f"{HOSTILE[1]}\n| {HOSTILE[2]}",
        "caveat": HOSTILE[3],
    }
    write_report(
        path,
        records,
        {HOSTILE[0]: {HOSTILE[2]: HOSTILE[0]}},
        None,
        [s._replace(label=HOSTILE[0]) for s in make_sentences(9, n, words)],
        results=[make_comsem(records, n, **said)],
        scores={HOSTILE[1]: [0.5] * n},
        phrases=[words[j % len(words)] for j in range(n)],
        effects=make_effects(n, words),
        title="".join(HOSTILE),
    )
    return n


class Page(HTMLParser):
    """What a browser's parser would find: tags with their attributes, and the text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag in ("script", "style"):
            getattr(self, tag + "s").append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            getattr(self, self._open + "s")[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return json.loads(self.scripts[0])

    @property
    def policy(self) -> str:
        """Of the content security policy."""
        [policy] = [a["content"] for _, a in self.tags if "http-equiv" in a]
        return policy or ""
