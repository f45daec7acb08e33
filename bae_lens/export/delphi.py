"""The cache that delphi explains and scores latents from: every location at which a latent is not 0."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.numpy import save_file
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.reference_norms import outlier_tokens_of
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.checks.fields import check_fields, whole
from bae_lens.examples.coder import Coder
from bae_lens.examples.corpus import Texts
from bae_lens.examples.records import ExampleSettings
from bae_lens.export.folder import check_export_folder, export_folder
from bae_lens.files.json_file import write_json
from bae_lens.fingerprint import weights_sha256

logger = logging.getLogger(__name__)

LATENTS, CONFIG_FILENAME = "latents", "config.json"
_SMALL, _LARGEST_HALF = 2**16, 65_504
# A folder of the cache is called as the hook point, which metadata of somebody else's may name.
_HOOK = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class DelphiSettings:
    """Settings of ``write_delphi``.

    Args:
        n_tokens (int): Tokens to read that count; whole sequences are read until there are as many.
        n_splits (int): Files that the latents are in.
        batch_size (int): Sequences a forward pass.

    Raises:
        ValueError: if a value is outside its range.
    """

    n_tokens: int = 200_000
    n_splits: int = 5
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_fields(self, {name: whole(1) for name in asdict(self)})


class _Firings(NamedTuple):
    """Of one batch and one split: ``[n]`` each, the latent counted from the split's first, in the smallest types that hold them."""

    rows: NDArray[np.uint32]
    positions: NDArray[np.uint16 | np.uint32]
    latents: NDArray[np.uint16 | np.uint32]
    values: NDArray[np.float16 | np.float32]


def write_delphi(
    path: str | Path,
    model: HookedRootModule,
    sae: SAE[Any],
    source: Any = None,
    settings: DelphiSettings | None = None,
    *,
    activation_scaler: ActivationScaler | None = None,
    exclude_special_tokens: bool | Iterable[int] = True,
    exclude_outlier_tokens: bool | float | OutlierTokens = True,
    model_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Write delphi's cache of a dictionary: ``LatentDataset(f"{path}/latents", …, modules=[hook_name], tokenizer=…)`` reads it.

    ``latents/HOOK_NAME/FIRST_LAST.safetensors`` has, of the latents of one split, ``locations`` ``[n, 3]`` (sequence, position,
    latent from the split's first), ``activations`` ``[n]`` in float16 (float32 where one is above 65,504) and all ``tokens``
    ``[n_sequences, n_positions]``; ``config.json`` beside it is delphi's. Every nonzero activation at a token that counts is there, in
    the order of the text: nothing is at special and outlier tokens, which the dictionary was not trained on.

    Activations are what ``encode`` gives: those of a bit are all alike, so that delphi's quantiles of them are any division of its firings.

    Memory: 10 bytes a location, and a copy or two of one split.

    Args:
        path: of the folder.
        model: a HookedTransformer, TransformerBridge or another model with their interface.
        sae: any SAE; of one that writes elsewhere, what it reads.
        source: the text, see ``collect_examples``.
        settings: how much.
        activation_scaler: as SAELens trains with, while it is not folded in yet.
        exclude_special_tokens: see ``collect_examples``.
        exclude_outlier_tokens: see ``collect_examples``.
        model_kwargs: passed to the model.

    Returns:
        The number of locations.

    Raises:
        ValueError: if the hook point's name cannot be a folder's, there are more splits than latents, there is no token
            that counts, activations are NaN or infinite, or the folder is of another export.
    """
    settings = settings or DelphiSettings()
    coder = Coder(sae, activation_scaler or ActivationScaler())
    if _HOOK.fullmatch(coder.hook_name) is None:
        raise ValueError(
            f"delphi names a folder by the hook point, which {coder.hook_name[:80]!r} cannot be."
        )
    if settings.n_splits > coder.n_latents:
        raise ValueError(
            f"n_splits is {settings.n_splits}, and there are only {coder.n_latents} latents."
        )
    # As delphi has it: of n + 1 borders, each split begins at one and ends before the next.
    borders = np.linspace(0, coder.n_latents, settings.n_splits + 1).astype(np.int64)
    sha256 = weights_sha256(sae)
    check_export_folder(path, "delphi", sha256)
    special = special_token_ids(model, exclude_special_tokens)
    reading = ExampleSettings(n_tokens=settings.n_tokens, batch_size=settings.batch_size)
    texts = Texts.open(source, coder, model, reading, special)
    outliers = outlier_tokens_of(
        exclude_outlier_tokens,
        sae,
        texts.store,
        model,
        special,
        model_kwargs,
        {coder.hook_name: coder.head_index},
    )
    read: list[NDArray[np.int64]] = []
    firings: list[list[_Firings]] = [[] for _ in range(settings.n_splits)]
    n_counted = 0
    for batch, _ in texts.batches():
        if n_counted >= settings.n_tokens:
            break
        n, found = _read(batch, model, coder, outliers, borders, model_kwargs)
        n_rows = sum(map(len, read))
        for split, own in zip(firings, found, strict=True):
            split.append(own._replace(rows=own.rows + np.uint32(n_rows)))
        read.append(batch.tokens.cpu().numpy().astype(np.int64))
        n_counted += n
    if n_counted == 0:
        raise ValueError(
            "There is no token that counts: the text is empty, or all of it is special tokens or outliers."
        )
    if n_counted < settings.n_tokens:
        logger.warning("The text ended after %d of %d tokens.", n_counted, settings.n_tokens)
    tokens = _padded(read, int(getattr(model.tokenizer, "pad_token_id", None) or 0))  # pyright: ignore[reportAttributeAccessIssue]
    metadata = sae.cfg.metadata
    config = {
        "dataset_repo": str(source) if isinstance(source, str) else metadata.dataset_path or "",
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": settings.batch_size,
        # Of delphi before 0.1 too.
        "cache_ctx_len": tokens.shape[1],
        "ctx_len": tokens.shape[1],
        "n_tokens": tokens.size,
        "n_splits": settings.n_splits,
        "model_name": metadata.model_name or "",
    }
    about = {"hook_name": coder.hook_name, "n_counted_tokens": n_counted, **asdict(settings)}
    n_locations = 0
    with export_folder(path, "delphi", sha256, about) as folder:
        module = folder / LATENTS / coder.hook_name
        module.mkdir(parents=True)
        for k, (first, end) in enumerate(pairwise(borders.tolist())):
            whole_split = _Firings(*map(np.concatenate, zip(*firings[k], strict=True)))
            firings[k] = []
            n_locations += len(whole_split.rows)
            arrays = _arrays(whole_split, tokens, end - first)
            save_file(arrays, module / f"{first}_{end - 1}.safetensors")
        write_json(module / CONFIG_FILENAME, config)
    return n_locations


@torch.no_grad()
def _read(
    batch: TextBatch,
    model: HookedRootModule,
    coder: Coder,
    outliers: OutlierTokens | None,
    borders: NDArray[np.int64],
    model_kwargs: Mapping[str, Any] | None,
) -> tuple[int, list[_Firings]]:
    """How many tokens of a batch count, and what fires at them, by split."""
    _, [acts] = read_hooks(model, batch, [coder.hook_name], model_kwargs)
    acts = take_heads(acts, coder.head_index)
    valid = batch.valid.to(acts.device)
    if outliers is not None:
        valid = valid & ~outliers.mask(acts, coder.hook_name).to(acts.device)
    code = coder.encode(acts[valid].to(coder.dtype))
    if not code.isfinite().all():
        raise ValueError(
            "The dictionary's code has NaN or infinite values. Are its weights finite?"
        )
    rows, positions = (i.cpu().numpy().astype(np.uint32) for i in valid.nonzero(as_tuple=True))
    return int(valid.sum()), [
        _firings(code[:, first:end], rows, positions) for first, end in pairwise(borders.tolist())
    ]


def _firings(code: Tensor, rows: NDArray[np.uint32], positions: NDArray[np.uint32]) -> _Firings:
    """Of one split: by token, and in it by latent, which is the order of the text, as delphi's own."""
    at, latents = code.nonzero(as_tuple=True)
    values = code[at, latents].float().cpu().numpy()
    at, latents = at.cpu().numpy(), latents.cpu().numpy()
    is_small = code.shape[1] < _SMALL and positions.max(initial=0) < _SMALL
    small = np.uint16 if is_small else np.uint32
    is_half = np.abs(values).max(initial=0) <= _LARGEST_HALF
    return _Firings(
        rows[at],
        positions[at].astype(small),
        latents.astype(small),
        values.astype(np.float16) if is_half else values,
    )


def _arrays(firings: _Firings, tokens: NDArray[np.int64], width: int) -> dict[str, NDArray[Any]]:
    """A split in the types that delphi writes, the smallest that hold it."""
    is_small = max(*tokens.shape, width) < _SMALL
    dtype = np.uint16 if is_small else np.uint32
    locations = np.empty((len(firings.rows), 3), dtype)
    for column, own in enumerate((firings.rows, firings.positions, firings.latents)):
        locations[:, column] = own
    return {"locations": locations, "activations": firings.values, "tokens": tokens}


def _padded(read: list[NDArray[np.int64]], padding: int) -> NDArray[np.int64]:
    """All sequences, as long as the longest: nothing fires at what is added."""
    length = max(tokens.shape[1] for tokens in read)
    return np.concatenate(
        [
            np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])), constant_values=padding)
            for tokens in read
        ]
    )
