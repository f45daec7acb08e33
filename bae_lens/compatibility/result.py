"""What was found when a language model was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bae_lens.results import Table, Verdict

_SHOWN = {True: "kept", False: "NOT KEPT", None: "–"}


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: what a model has to keep.
        holds: whether it does; None where there is nothing to keep, or only something to know.
        detail: what was seen.
        advice: what to do about it; empty: nothing.
    """

    name: str
    holds: bool | None
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Compatibility:
    """A model at a hook point.

    Attributes:
        model_name: of the model.
        model_class: of the object.
        hook_name: of the hook point.
        findings: in the order in which they were tried.
    """

    model_name: str
    model_class: str
    hook_name: str
    findings: Sequence[Finding]

    @property
    def holds(self) -> bool:
        """Whether nothing was found that is not kept."""
        return all(finding.holds is not False for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def verdict(self) -> Verdict:
        """What it comes to, and what to do first."""
        tried = [finding for finding in self.findings if finding.holds is not None]
        broken = [finding for finding in tried if not finding.holds]
        where = f"{self.model_name} ({self.model_class}) at {self.hook_name}"
        advice = next((f.advice for f in (*broken, *self.findings) if f.advice), "")
        if broken:
            names = "; ".join(finding.name for finding in broken)
            return Verdict(f"{where} does not keep {len(broken)} of {len(tried)}: {names}.", advice)
        return Verdict(f"{where} keeps all {len(tried)} that were tried.", advice)

    def table(self) -> Table:
        """A row for each finding, and what nobody tried."""
        return Table(
            ("", "", "seen"),
            [(f.name, _SHOWN[f.holds], f.detail) for f in self.findings],
            caveat="Tried on two sentences, on one device. What is not tried: other lengths, several devices, "
            "quantized weights, and whether the model is any good.",
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"holds": self.holds}
