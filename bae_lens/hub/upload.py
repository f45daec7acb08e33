"""Saved SAEs are checked, and sent to a repository of the hub in one commit.

The layout is that of SAELens' ``upload_saes_to_huggingface`` (a folder for each SAE, with the files that
``SAE.from_pretrained`` downloads); that function sends each SAE and the README in a commit of its own, as they are. Here all
is checked before anything is sent, and either all of it is there or nothing.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from bae_lens.checks.fields import Flag, Text, check, shown
from bae_lens.checks.origin import origin_of
from bae_lens.files.whole import check_output_folder, whole_folder
from bae_lens.hub.card import model_card
from bae_lens.hub.contents import FILENAMES, SAEContents, read_contents
from bae_lens.hub.private import is_local_path, without_secrets

logger = logging.getLogger(__name__)

README_FILENAME = "README.md"
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
# What is said of a reason, and what is looked through for secrets before that.
_LONGEST_REASON, _LONGEST_TEXT = 300, 10_000
# A folder of such a name could stand where another SAE's file does.
_RESERVED = {README_FILENAME.lower(), *FILENAMES}


@dataclass(frozen=True)
class Uploaded:
    """What was sent, or was written to be looked at.

    Attributes:
        files: paths in the repository.
        url: of the commit; None where nothing was sent.
    """

    files: tuple[str, ...]
    url: str | None


def upload_saes(
    saes: Mapping[str, str | Path],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
    model_name: str | None = None,
    overwrite_readme: bool = False,
    dry_run: str | Path | None = None,
) -> Uploaded:
    """Send saved SAEs to the Hugging Face Hub, from where ``SAE.from_pretrained(repo_id, sae_id)`` loads them.

    Of each folder go the config, weights, sparsity and the run's config, as of SAELens' own upload, and the metrics of ``bae-lens
    eval`` if they are of these weights; a README says what they are. All of it is checked first, loaded as others will load it, and
    sent in one commit. In the files of names and values a path of this machine is left out, with a logged warning.

    The token is that of ``hf auth login`` or ``HF_TOKEN``, and is read by the hub's client.

    Args:
        saes: folders of saved SAEs by what they are to be called there (``sae_id``).
        repo_id: ``OWNER/NAME`` of the repository, which is made if there is none.
        revision: a branch of it, which is made if there is none; the repository's own if omitted. ``SAE.from_pretrained``
            reads that one only.
        private: a repository that is made is seen by its owner alone; otherwise by whom its owner's settings say.
        license: the hub's name of one (``mit``, ``apache-2.0``, …), for the README's header; omitted, there is none.
        model_name: the language model's name in place of the one in the metadata, which may be a folder of yours.
        overwrite_readme: replace the repository's README, which otherwise stays as it is.
        dry_run: write what would be sent into this folder, and send nothing. The hub is not asked, so a README is
            there even where the repository's own would stay.

    Returns:
        What was sent or written.

    Raises:
        FileNotFoundError: if a folder is not of a saved SAE.
        ValueError: if a name cannot be one, a folder is damaged or holds what must not leave this machine (see
            ``hub.contents``), the repository is public and was to be private, there is no token, or the hub refuses. Nothing is
            sent then.
    """
    _check_names(saes, repo_id, revision, license)
    for name, flag in (("private", private), ("overwrite_readme", overwrite_readme)):
        check(name, flag, Flag())
    if model_name is not None:
        check("model_name", model_name, Text(may_be_empty=False))
        # Of a folder here that is called as the model is, the model is meant.
        if is_local_path(model_name) or model_name.startswith("."):
            raise ValueError(
                f"model_name must be a name by which others find the model; got the path {shown(model_name)}."
            )
    if dry_run is not None:
        _check_empty(Path(dry_run))
    contents = {
        sae_id: read_contents(sae_id, Path(folder), repo_id, model_name)
        for sae_id, folder in saes.items()
    }
    files = {
        README_FILENAME: model_card(repo_id, contents, license, revision).encode(),
        **_of_saes(contents),
    }
    if dry_run is not None:
        _write(files, contents, Path(dry_run))
        return Uploaded(tuple(files), None)
    return _send(files, contents, repo_id, revision, private, overwrite_readme)


def _of_saes(contents: Mapping[str, SAEContents]) -> dict[str, Path | bytes]:
    return {
        f"{sae_id}/{name}": content
        for sae_id, one in contents.items()
        for name, content in one.files.items()
    }


def _check_names(
    saes: Mapping[str, str | Path], repo_id: str, revision: str | None, license: str | None
) -> None:
    check("repo_id", repo_id, Text(may_be_empty=False))
    try:
        validate_repo_id(repo_id)
        is_name = repo_id.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(
            f"repo_id must be OWNER/NAME of letters, digits, -, _ and ., as the hub and SAE.from_pretrained take it; "
            f"got {shown(repo_id)}."
        )
    if not saes:
        raise ValueError("saes must name at least one folder of a saved SAE.")
    for sae_id in saes:
        is_id = isinstance(sae_id, str) and _ID.fullmatch(sae_id) and ".." not in sae_id
        if not is_id:
            raise ValueError(
                f"An SAE's id must be a path in the repository, of letters, digits, -, _, . and /; got {shown(sae_id)}."
            )
        for part in sae_id.lower().split("/"):
            if part in _RESERVED:
                raise ValueError(
                    f"An SAE's id names a folder, and {part} is a file of an upload; got {shown(sae_id)}."
                )
    for name, value in (("revision", revision), ("license", license)):
        check(name, value, Text(or_none=True, may_be_empty=False))
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"{name} must be of letters, digits, -, _, . and /; got {shown(value)}."
            )


# Into a folder


def _check_empty(folder: Path) -> None:
    check_output_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"dry_run {folder} is there and not empty: what would be sent could not be told from what is in it. Name "
            "another folder."
        )


def _write(
    files: Mapping[str, Path | bytes], contents: Mapping[str, SAEContents], target: Path
) -> None:
    with whole_folder(target) as folder:
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                shutil.copyfile(content, file)
        _check_unchanged(contents)


def _check_unchanged(contents: Mapping[str, SAEContents]) -> None:
    for one in contents.values():
        one.check_unchanged()


# To the hub


def _send(
    files: Mapping[str, Path | bytes],
    contents: Mapping[str, SAEContents],
    repo_id: str,
    revision: str | None,
    private: bool,
    overwrite_readme: bool,
) -> Uploaded:
    if get_token() is None:
        raise ValueError(
            "There is no token for the hub: log in once with hf auth login, or set HF_TOKEN, with the right to write."
        )
    api, sae_ids = HfApi(library_name="bae-lens"), tuple(contents)
    left: list[str] = []
    with _told_by_the_hub(repo_id, left):
        if _make_repository(api, repo_id, private):
            left.append("An empty repository was made and is left there.")
        if revision is not None and _make_branch(api, repo_id, revision):
            left.append(f"The branch {revision} was made and is left there.")
        there = set(api.list_repo_files(repo_id, revision=revision))
        sent = dict(files)
        if README_FILENAME in there and not overwrite_readme:
            logger.warning(
                "%s has a README.md, which stays as it is (overwrite_readme replaces it).", repo_id
            )
            del sent[README_FILENAME]
        for sae_id in sae_ids:
            if any(name.startswith(f"{sae_id}/") for name in there):
                logger.warning(
                    "%s has %s already: it is replaced; its history keeps it.", repo_id, sae_id
                )
        # Of other weights: what an SAE at this place had and this one lacks.
        stale = {f"{sae_id}/{name}" for sae_id in sae_ids for name in FILENAMES} & there - set(sent)
        # Which reads each file, to hash it.
        added = [CommitOperationAdd(name, content) for name, content in sent.items()]
        _check_unchanged(contents)
        commit = api.create_commit(
            repo_id,
            [*added, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message=f"Upload {', '.join(sae_ids) if len(sae_ids) <= 3 else f'{len(sae_ids)} SAEs'}",
            revision=revision,
        )
    return Uploaded(tuple(sent), commit.commit_url)


def _make_repository(api: HfApi, repo_id: str, private: bool) -> bool:
    """Have the repository there; whether it is new.

    Raises:
        ValueError: if it is public, and was to be private.
    """
    try:
        info = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        # None: an organization may have set that its repositories are private.
        api.create_repo(repo_id, private=private or None)
        return True
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is there and public: everybody would see what is sent. Name another repository, or make this "
            "one private on the hub."
        )
    return False


def _make_branch(api: HfApi, repo_id: str, revision: str) -> bool:
    """Have the branch there; whether it is new."""
    try:
        api.repo_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision)
        return True
    return False


@contextmanager
def _told_by_the_hub(repo_id: str, left: Sequence[str]) -> Iterator[None]:
    """What the hub, its client or the way there says, in one sentence without secrets.

    Args:
        repo_id: of the repository.
        left: what stays there by now, in sentences.

    Raises:
        ValueError: for what they raise, and what was found wrong here; a fault of this package stays as it is.
    """
    try:
        yield
    except KeyboardInterrupt:
        for sentence in left:
            logger.warning("%s: %s", repo_id, sentence)
        raise
    except Exception as error:
        if origin_of(error) != "bae_lens":
            said = f"Nothing was sent to {repo_id}, as far as can be told: {_in_words(error)}."
        elif isinstance(error, ValueError):
            said = str(error)
        else:
            raise
        # Not from it: what is logged of it could hold more than is said here.
        raise ValueError(" ".join([said, *left])) from None


def _in_words(error: BaseException) -> str:
    """What it and what it was raised from say, without secrets."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        what = without_secrets(str(cause)[:_LONGEST_TEXT], get_token())
        what = " ".join(what.split()).rstrip(".")
        what = what if len(what) <= _LONGEST_REASON else f"{what[: _LONGEST_REASON - 1]}…"
        parts.append(f"{type(cause).__name__}: {what}" if what else type(cause).__name__)
        cause = cause.__cause__
    return "; from ".join(parts)
