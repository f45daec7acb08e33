"""What of a file of names and values must not leave this machine: secrets, and paths that are of it alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Keys and tokens as their makers write them, a private key, and a password in an address.
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}|\bglpat-[\w-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\bBearer\s+\S{8,}|://[^/\s:@]+:[^/\s:@]+@"
)
# A field that holds one whatever it looks like. Not sequence_separator_token, nor training_tokens.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|passw(?:or)?d|secret(?:_\w+)?|credentials?)$|^token$"
    r"|(?:^|_)(?:access|auth|hf|hub|api|bearer|wandb)_?(?:token|key)$",
    re.IGNORECASE,
)
# As a whole a path from a root, a home folder or a drive; or with one in it, as a command line has.
_PATH = re.compile(
    r"^(?:file:|~[\w.-]*[/\\]|/[^/\s]|\\\\|[A-Za-z]:[\\/])"
    r"|(?:(?<=[\s'\"=:,;(\[])|^)(?:/(?:[\w.@+-]+/)+|~/|[A-Za-z]:\\)"
)
_HIDDEN = "…"


def is_local_path(value: Any) -> bool:
    """Whether a value is a path of some machine, or has one in it: an absolute one, or one from a home folder.

    >>> [is_local_path(v) for v in ("/home/ann/texts", "C:\\\\texts", "train --out /mnt/a/b", "~/a")]
    [True, True, True, True]
    >>> [is_local_path(v) for v in ("gpt2", "ann/saes", "data/texts.jsonl", "https://host.org/a/b", 3)]
    [False, False, False, False, False]
    """
    return isinstance(value, str) and (bool(_PATH.search(value)) or _names_this_machine(value))


def _names_this_machine(value: str) -> bool:
    own = {str(folder) for folder in (Path.home(), Path.cwd()) if len(folder.parts) > 1}
    return any(re.search(rf"{re.escape(folder)}(?![\w-])", value) for folder in own)


def check_no_secrets(values: Any, source: str) -> None:
    """
    Args:
        values: of a JSON file.
        source: the file, for the message.

    Raises:
        ValueError: if a field holds what looks like a key, a token or a password. It names the field and not what
            is in it.
    """
    for name, value in _strings(values):
        last = name.rpartition(".")[2].partition("[")[0]
        if _SECRET.search(value) or (value and _SECRET_NAME.search(last)) or _SECRET.search(name):
            field = _SECRET.sub(_HIDDEN, name)
            raise ValueError(
                f"{source}: {field} holds what looks like a key, a token or a password, so nothing is sent. Take it "
                "out of the file, and revoke it if the file was ever shared."
            )


def without_secrets(text: str, *known: str | None) -> str:
    """A message of somebody else's with … in place of the known secrets and of what looks like one."""
    for secret in known:
        if secret:
            text = text.replace(secret, _HIDDEN)
    return _SECRET.sub(_HIDDEN, text)


def without_local_paths(values: Any) -> tuple[Any, list[str]]:
    """The values with None in place of each local path, and without the names that are one.

    Returns:
        The values, and the dotted names of what was taken out.
    """
    removed: list[str] = []
    return _cleaned(values, "", removed), removed


def _cleaned(value: Any, name: str, removed: list[str]) -> Any:
    if isinstance(value, Mapping):
        kept = {}
        for own, inner in value.items():
            if is_local_path(own):
                removed.append(f"{name}.…".lstrip("."))
            else:
                kept[own] = _cleaned(inner, f"{name}.{own}".lstrip("."), removed)
        return kept
    if isinstance(value, list):
        return [_cleaned(inner, f"{name}[{i}]", removed) for i, inner in enumerate(value)]
    if is_local_path(value):
        removed.append(name)
        return None
    return value


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted name, and the string that stands there; "" where something else does."""
    yield name, value if isinstance(value, str) else ""
    if isinstance(value, Mapping):
        for own, inner in value.items():
            yield from _strings(inner, f"{name}.{own}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, f"{name}[{i}]")
