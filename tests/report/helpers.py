"""Evidence that is made up, small or large, harmless or hostile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from bae_lens.interp import (
    Count,
    Evidence,
    EvidenceSettings,
    Example,
    LatentEvidence,
    Neighbour,
)
from bae_lens.report import CodedSentence

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


def make_evidence(
    n_latents: int = 12,
    words: tuple[str, ...] = WORDS,
    n_examples: int = 3,
    n_window: int = 9,
    strength: str = "activation",
    seed: int = 0,
    **changes: Any,
) -> Evidence:
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

    def latent(j: int) -> LatentEvidence:
        fires = j < n_latents - 1
        n = int(2 + 2000 / (j + 1)) if fires else 0
        counts = rng.permutation(len(words))[: min(10, len(words) - 1)].tolist()
        tokens = [j % len(words), *(i for i in counts if i != j % len(words))]
        return LatentEvidence(
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
            neighbours=tuple(
                Neighbour((j + k) % n_latents, 0.5 / k, None if strength == "nearness" else 7)
                for k in (1, 2)
            ),
            class_shares=(0.75, 0.25) if fires else (0.0, 0.0),
        )

    settings = {
        "dictionary": "bae",
        "hook_name": "blocks.1.hook_resid_post",
        "strength": strength,
        "neighbour_measure": "distance" if strength == "nearness" else "phi",
        "n_tokens": N_TOKENS,
        "n_texts": 500,
        "settings": EvidenceSettings(),
        "latents": tuple(map(latent, range(n_latents))),
        "class_names": ("negative", "positive"),
        "class_shares": (0.5, 0.5),
    }
    return Evidence(**{**settings, **changes})


def many(evidence: Evidence, n: int) -> Evidence:
    """Its latents again and again, which is soon made."""
    latents = (replace(evidence[j % len(evidence)], index=j) for j in range(n))
    return replace(evidence, latents=tuple(latents))


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
