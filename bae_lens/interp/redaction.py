"""Secrets that somebody else repeats are taken out before anything is shown, logged or kept."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable

# Characters from which on something is looked for as it is, and in other spellings: what is shorter is
# a placeholder ("x", "none"), which would be found all over ordinary text.
_SHORTEST, _SHORTEST_SPELLED = 4, 8
_SHOWN = "…"

# What may come between two characters: line ends and space, as they are or escaped, what cannot be
# seen, and quotation marks that close one part and open the next.
_BETWEEN = (
    r"(?:[\s\"'\u00ad\u200b-\u200f\u2060\ufeff]|\\+[nrt\"']|%0[9AaDd]|%20|&#1[03];|<br\s*/?>|=\r?\n)"
    r"{0,64}?"
)


class Redactor:
    """Replaces secrets in text, however it spells them: as they are, escaped as JSON, URLs, HTML or
    Python do it, in base64 or hexadecimal, and cut into parts by line ends, space or quotation marks.

    What is cut off, encrypted or spelled in a way that is not among these goes through: this is a net
    under honest endpoints that repeat what they were sent, and no proof against one that hides it.

    Args:
        secrets: None and strings of fewer than 4 characters are passed over. Of fewer than 8 only the
            string itself is looked for.
    """

    def __init__(self, secrets: Iterable[str | None]) -> None:
        known = sorted(
            {s for s in secrets if s and len(s) >= _SHORTEST}, key=lambda s: (-len(s), s)
        )
        spelled = [form for secret in known for form in _forms(secret)]
        self._pattern = re.compile("|".join(spelled)) if spelled else None

    def __call__(self, text: str) -> str:
        """The text with … in place of each secret."""
        return text if self._pattern is None else self._pattern.sub(_SHOWN, text)


def _forms(secret: str) -> list[str]:
    """Regular expressions."""
    if len(secret) < _SHORTEST_SPELLED:
        return [re.escape(secret)]
    hexadecimal = "[:\\s]?".join(f"{byte:02x}" for byte in secret.encode())
    return [
        _BETWEEN.join(map(_spellings, secret)),
        f"(?i:{hexadecimal})",
        *(_BETWEEN.join(map(_base64_spellings, own)) for own in _base64_forms(secret.encode())),
    ]


def _spellings(character: str) -> str:
    n = ord(character)
    escaped = [
        rf"\\+u00{n:02x}",
        rf"\\+x{n:02x}",
        rf"%(?:25)*{n:02x}",
        rf"&#0*{n};",
        rf"&#x0*{n:x};",
    ]
    if (named := html.escape(character)) != character:
        escaped.append(re.escape(named))
    return rf"(?:\\*{re.escape(character)}|(?i:{'|'.join(escaped)}))"


def _base64_forms(secret: bytes) -> list[str]:
    """What a text has in base64 wherever in it the secret begins: of three bytes each, at the first,
    second or third. Characters that the bytes before or after it decide as well are left out."""
    forms = []
    for n_before in range(3):
        n_bits = 8 * (n_before + len(secret))
        encoded = base64.b64encode(bytes(n_before) + secret).decode()
        forms.append(encoded[(8 * n_before + 5) // 6 : n_bits // 6])
    return forms


def _base64_spellings(character: str) -> str:
    return {"+": "(?:[+-]|%2[Bb])", "/": r"(?:\\*/|_|%2[Ff])"}.get(character, character)
