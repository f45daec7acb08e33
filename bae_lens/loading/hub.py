"""Datasets by name from a folder or the hub, and one sentence where there is nothing of that name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import load_dataset as hf_load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from bae_lens import offline as demo
from bae_lens.checks.fields import Text, check, shown

_UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
# Libraries below the hub's, one or the other by its version.
_TRANSPORTS = ("httpx", "httpx2", "requests", "urllib3")
_UNKNOWN = (RepositoryNotFoundError, GatedRepoError, DatasetNotFoundError, HFValidationError)


def load_dataset(name: Any, split: str = "train", *, streaming: bool = False) -> Any:
    """One split of a dataset of the hub, or of a folder with data files. No file of it is run.

    Raises:
        ValueError: if there is none of that name, or it cannot be read.
    """
    name = check("The dataset", name, Text(may_be_empty=False))
    try:
        return hf_load_dataset(name, split=split, streaming=streaming)
    # RuntimeError: it has a script, which datasets runs no more.
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        what = f"The split {shown(split)} of a dataset {shown(name)}"
        if is_about_the_hub(error):
            raise ValueError(
                f"{what} cannot be had: it is no file or folder here, and {why_not_found(error)}. Give a "
                f"file of texts (.txt, .jsonl, .json or .csv), or {demo.DATASET_NAME}, which needs no hub."
            ) from error
        raise ValueError(f"{what} cannot be read: {_short(error)}.") from error


def is_about_the_hub(error: BaseException) -> bool:
    """Whether it says that the hub cannot be reached, or has nothing of the name."""
    return any(
        isinstance(cause, (*_UNREACHABLE, *_UNKNOWN))
        or type(cause).__module__.partition(".")[0] in _TRANSPORTS
        for cause in _causes(error)
    )


def why_not_found(error: BaseException) -> str:
    """The end of a sentence about a name that ``is_about_the_hub`` was said of."""
    if any(isinstance(cause, HFValidationError) for cause in _causes(error)):
        return "no name that the hub could have"
    if any(isinstance(cause, _UNKNOWN) for cause in _causes(error)):
        return (
            "the hub has nothing of that name that is open to you (a token is read from HF_TOKEN)"
        )
    why = (
        "HF_HUB_OFFLINE is set"
        if constants.HF_HUB_OFFLINE
        else "the hub cannot be reached from here"
    )
    return f"{why} and it is not among what was downloaded before"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: BaseException) -> str:
    reason = " ".join(str(error).split())
    return (reason if len(reason) <= 240 else f"{reason[:239]}…").rstrip(".")
