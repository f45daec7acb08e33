"""What a report is made from: a saved SAE, its model and the texts that they read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.cli.data import has_labels, read_data, read_unlabeled
from bae_lens.cli.saved import Saved, load_saved

if TYPE_CHECKING:
    from sae_lens import SAE


class Texts(NamedTuple):
    """What is read; no ``source``: the dataset in the metadata."""

    source: Any
    labels: list[str] | None

    @classmethod
    def read(cls, args: argparse.Namespace) -> Texts:
        if args.data is None:
            return cls(args.dataset, None)
        if args.dataset is not None:
            raise ValueError("Give --data or --dataset: only one of them can be read.")
        if not has_labels(args):
            return cls(read_unlabeled(args), None)
        data = read_data(args)
        return cls(data.texts, [data.label_names[i] for i in data.labels.tolist()])

    def open(self, saved: Saved, batch_size: int) -> Any:
        """Open the texts as ``collect_examples`` takes them."""
        from bae_lens.activations.held_out import held_out_store

        if self.labels is not None:
            return self.source
        return held_out_store(saved.sae, saved.model, self.source, batch_size)


class References(NamedTuple):
    """The norms that outlier tokens are told by: one for each hook point of a model, that of the first
    dictionary that has one, so that those that are compared leave the same tokens out.

    Attributes:
        multiple: of the norm; False: no token is left out.
        known: by model, hook point and head.
    """

    multiple: float | bool
    known: dict[tuple[Any, ...], float]

    def at(self, sae: SAE[Any], names: Sequence[str]) -> OutlierTokens | float | bool:
        """Return what ``exclude_outlier_tokens`` takes, for some hook points of an SAE."""
        norms = {name: self.known.get(self._key(sae, name)) for name in names}
        if self.multiple is False or None in norms.values():
            return self.multiple
        return OutlierTokens({k: v for k, v in norms.items() if v is not None}, self.multiple)

    def note(self, sae: SAE[Any], name: str, norm: float) -> None:
        """What was used for one, and holds for those after it."""
        self.known.setdefault(self._key(sae, name), norm)

    def _key(self, sae: SAE[Any], name: str) -> tuple[Any, ...]:
        metadata = sae.cfg.metadata
        return metadata.model_name, name, metadata.hook_head_index


class Read(NamedTuple):
    """What is read: model, SAE and texts; and how."""

    given: tuple[Any, Any, Any]
    options: dict[str, Any]

    @classmethod
    def opener(
        cls, folder: Path, args: argparse.Namespace, texts: Texts, batch_size: int
    ) -> Callable[[], Read]:
        """What opens it the first time that it is called."""
        return cache(lambda: cls.open(load_saved(folder, args), texts, batch_size))

    @classmethod
    def open(cls, saved: Saved, texts: Texts, batch_size: int) -> Read:
        excluded = saved.sae.cfg.metadata.exclude_special_tokens or False
        options = {"activation_scaler": saved.scaler, "exclude_special_tokens": excluded}
        return cls((saved.model, saved.sae, texts.open(saved, batch_size)), options)
