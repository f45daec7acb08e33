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
    r"|\bgsk_\w{16,}|\bnvapi-[\w-]{16,}|\bnpm_[A-Za-z0-9]{16,}|\bpypi-[\w-]{16,}|\b[spr]k_(?:live|test)_\w{8,}"
    r"|\beyJ[\w-]{8,500}\.eyJ[\w-]{8,}\.|-----BEGIN [A-Z ]*PRIVATE KEY|\bBearer\s+(?=\S{0,200}\d)\S{8,}"
    r"|://[^/\s:@]+:[^/\s:@]+@|://[^/\s:@]{12,300}@"
    r"|[?&](?i:x-amz-signature|x-goog-signature|signature|sig|token|access_token|api_?key|key)=[\w%.~+/-]{8,}"
    # On a command line, or as a variable of one.
    r"|(?i:(?:(?:api|wandb|access)[_-]?key|token|secret)=|(?<![\w-])--?[\w-]{0,40}?"
    r"(?:(?:api|wandb|access)[_-]?key|token|secret|password)\s{1,4})(?=\S{0,200}\d)[\w.~+/-]{12,}"
    r"|(?i:passw(?:or)?d|passphrase)=\S{4,}"
)
# A field that holds one whatever it looks like, or all of whose fields are of one.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|passw(?:or)?d|passphrase|pwd|secrets?(?:_\w+)?|credentials?|auth(?:orization)?)$|^token$"
    r"|(?:^|_)(?:access|auth|hf|hub|api|bearer|wandb|private|ssh|signing|encryption)_?(?:token|key)$",
)
# Of any other maker; those of a tokenizer are none, and a word of a text is shorter.
_TOKEN_NAME = re.compile(
    r"(?<!pad)(?<!bos)(?<!eos)(?<!unk)(?<!sep)(?<!cls)(?<!mask)(?<!separator)_token$"
)
_TOKEN = re.compile(r"[\w.~+/=-]{12,}")
_INDEX = re.compile(r"(?:\[\d+\])+$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")
# As a whole a path from a root, a home folder, a drive or a share; or with one in it, as a command line has.
_PATH = re.compile(
    r"^(?:file:|~(?:[A-Za-z_][\w.-]*)?[/\\]|//?[^/\s]|\\\\|[A-Za-z]:[\\/])"
    r"|(?<=[\s'\"=:,;(\[`|<>@“])(?:(?:/[\w.@+-]+){2}|file:/|~(?:[A-Za-z_][\w.-]*)?[/\\]|\\\\[\w.-]+\\|[A-Za-z]:\\)"
    r"|(?<=[\s'\"=,;(\[`|<>@“])//[\w.-]+/\w"
    # The value of an option, which has no other word before it.
    r"|(?:^|\s)-(?:[A-Za-z]|-[\w-]+[=\s]|[A-Za-z]\s)/\w"
)
_HIDDEN = "…"


def is_local_path(value: Any) -> bool:
    """Whether a value is a path of some machine, or has one in it: an absolute one, or one from a home folder.

    >>> [is_local_path(v) for v in ("/home/ann/texts", "C:\\\\texts", "train --out /mnt/a/b", "~/a")]
    [True, True, True, True]
    >>> [is_local_path(v) for v in ("--x=file:///a/b", "//share/x", "on \\\\\\\\share\\\\x", "--x=~ann/y")]
    [True, True, True, True]
    >>> [is_local_path(v) for v in ("gpt2", "ann/saes", "data/texts.jsonl", "https://host.org/a/b", "a // b", 3)]
    [False, False, False, False, False, False]
    """
    return isinstance(value, str) and (bool(_PATH.search(value)) or _names_this_machine(value))


def _names_this_machine(value: str) -> bool:
    own = {str(folder) for folder in (Path.home(), Path.cwd()) if len(folder.parts) > 1}
    return any(re.search(rf"(?<![\w.-]){re.escape(folder)}(?![\w-])", value) for folder in own)


def check_no_secrets(values: Any, source: str) -> None:
    """
    Args:
        values: of a JSON file.
        source: the file, for the message.

    Raises:
        ValueError: if a field holds what looks like a key, a token or a password. It names the field and not what
            is in it.
    """
    for keys, value in _strings(values):
        name = ".".join(keys)
        if _SECRET.search(value) or _SECRET.search(name) or _is_secret(keys, value):
            field = _SECRET.sub(_HIDDEN, name)
            raise ValueError(
                f"{source}: {field} holds what looks like a key, a token or a password, so nothing is sent. Take it "
                "out of the file, and revoke it if the file was ever shared."
            )


def _is_secret(keys: tuple[str, ...], value: str) -> bool:
    """By its name, or that of what it is a part of."""
    if not value:
        return False
    names = [_CAMEL.sub("_", _INDEX.sub("", key)).lower() for key in keys]
    if any(_SECRET_NAME.search(name) for name in names):
        return True
    return bool(names and _TOKEN_NAME.search(names[-1]) and _TOKEN.fullmatch(value))


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


def _strings(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The names that lead to each value, and the string or number that stands there; "" where something else does."""
    # A number of fewer digits is a count.
    is_number = isinstance(value, int) and abs(value) > 999
    yield keys, str(value) if is_number or isinstance(value, str) else ""
    if isinstance(value, Mapping):
        for own, inner in value.items():
            yield from _strings(inner, (*keys, str(own)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, (*keys[:-1], f"{keys[-1] if keys else ''}[{i}]"))
