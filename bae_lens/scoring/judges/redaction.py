"""Secrets that somebody else repeats are taken out before anything is shown, logged or kept."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator

# Characters from which on something is looked for as it is, and in other spellings: what is shorter is
# a placeholder ("x", "none"), which would be found all over ordinary text.
_SHORTEST, _SHORTEST_SPELLED = 4, 8
_SHOWN = "…"

# A character in another spelling, by its code in base 16 or 10 or its name; or what may come between
# two characters: line ends and space, as they are or escaped, what cannot be seen, quotation marks that
# close one part and open the next, and backslashes before a character.
_UNIT = re.compile(
    r"(?:\\+u00|\\+x|%(?:25)*|&#[xX]0*)(?P<hex>[0-9a-fA-F]{2});?|&#0*(?P<dec>\d{2,3});"
    r"|(?P<named>&(?:amp|lt|gt|quot|apos);)"
    r"|<br\s*/?>|=\r?\n|\\+[nrt]|[\s\"'\u00ad\u200b-\u200f\u2060\ufeff]+|\\"
)
_URL_SAFE = str.maketrans("-_", "+/")
# Leaves the length as it is, which str.lower does not.
_LOWER = str.maketrans("ABCDEF", "abcdef")


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
        known = {secret for secret in secrets if secret and len(secret) >= _SHORTEST}
        self._literal = sorted(known)
        long = sorted(secret for secret in known if len(secret) >= _SHORTEST_SPELLED)
        # The second, of a secret that itself looks like something escaped.
        plain = [p for s in long for p in (_Spelled(s).plain, re.sub(r"[\"'\\]", "", s))]
        self._plain = [form for form in dict.fromkeys(plain) if len(form) >= _SHORTEST]
        self._base64 = [form for secret in long for form in _base64_forms(secret.encode())]
        by_byte = [secret.encode().hex(":") for secret in long]
        self._hex = [*by_byte, *(form.replace(":", "") for form in by_byte)]

    def __call__(self, text: str) -> str:
        """The text with … in place of each secret."""
        spans = sorted(self._spans(text))
        parts, end = [], 0
        for begin, own_end in spans:
            if begin >= end:
                parts += [text[end:begin], _SHOWN]
            end = max(end, own_end)
        return "".join([*parts, text[end:]])

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for secret in self._literal:
            for i in _places(text, secret):
                yield i, i + len(secret)
        if not self._hex:
            return
        spelled = _Spelled(text)
        for view, forms in (
            (spelled.plain, self._plain),
            (spelled.plain.translate(_URL_SAFE), self._base64),
            (spelled.plain.translate(_LOWER), self._hex),
        ):
            for form in forms:
                for i in _places(view, form):
                    yield spelled.begins[i], spelled.ends[i + len(form) - 1]


class _Spelled:
    """A text with its characters in no other spelling, nothing between them, and where each stands.

    Attributes:
        plain: the text.
        begins, ends: of each character of it, in the text as it was.
    """

    def __init__(self, text: str) -> None:
        parts: list[str] = []
        self.begins: list[int] = []
        self.ends: list[int] = []
        at = 0
        for unit in _UNIT.finditer(text):
            self._add(parts, text[at : unit.start()], at)
            at = unit.end()
            if (character := _character(unit)) is not None:
                parts.append(character)
                self.begins.append(unit.start())
                self.ends.append(at)
        self._add(parts, text[at:], at)
        self.plain = "".join(parts)

    def _add(self, parts: list[str], part: str, at: int) -> None:
        parts.append(part)
        self.begins.extend(range(at, at + len(part)))
        self.ends.extend(range(at + 1, at + len(part) + 1))


def _character(unit: re.Match[str]) -> str | None:
    """What a unit stands for; None: nothing that counts."""
    if unit["named"]:
        character = html.unescape(unit["named"])
    elif unit["hex"] or unit["dec"]:
        character = chr(int(unit["hex"], 16) if unit["hex"] else int(unit["dec"]))
    else:
        return None
    return None if _UNIT.fullmatch(character) else character


def _places(text: str, form: str) -> Iterator[int]:
    i = text.find(form)
    while i >= 0:
        yield i
        i = text.find(form, i + len(form))


def _base64_forms(secret: bytes) -> list[str]:
    """What a text has in base64 wherever in it the secret begins: of three bytes each, at the first,
    second or third. Characters that the bytes before or after it decide as well are left out."""
    forms = []
    for n_before in range(3):
        n_bits = 8 * (n_before + len(secret))
        encoded = base64.b64encode(bytes(n_before) + secret).decode()
        forms.append(encoded[(8 * n_before + 5) // 6 : n_bits // 6])
    return forms
