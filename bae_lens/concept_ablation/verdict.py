"""What a concept ablation comes to, in two sentences."""

from __future__ import annotations

from collections.abc import Sequence

from bae_lens.concept_ablation.result import (
    CONCEPT,
    EVERYWHERE,
    LEACE,
    LOWER,
    MEAN,
    OTHER_CLASS,
    PROBE,
    RANDOM_CONCEPT,
    RANDOM_EQUAL,
    RETRAINED,
    SALIENT,
    UPPER,
    WHO,
    AblationRow,
    ConceptAblationResult,
    drop_difference,
)
from bae_lens.results import Verdict
from bae_lens.stats import Interval, shown

# The strongest first: within the model before stored vectors, every token before one.
_PLACES = {
    EVERYWHERE: "all tokens",
    SALIENT: "the salient token",
    UPPER: "the upper vector",
    LOWER: "the lower vector",
}
# What a dictionary's concept has to be told from, beside the random direction of equal norm.
_CONTROLS = {
    RANDOM_CONCEPT: "a random concept",
    OTHER_CLASS: "a concept of another class",
    MEAN: "the mean direction",
}
_MORE_RANK = 4


def ablation_verdict(result: ConceptAblationResult) -> Verdict:
    """Say what the concepts cost beyond their controls, and what to try next.

    One row is judged, chosen before its figures are seen: at the strongest place that was ablated (all tokens, the
    salient token, the upper vector, the lower vector), of the salient word before the readout, read by who predicted
    where that one can be read, else by the probe. More, or less, is said only where a paired 95 % interval over texts is
    off zero: of the random direction of equal norm first, and where it costs more than that, of the other controls.
    Where an accuracy is below chance, neither it nor its control's is counted below it.

    Args:
        result: What ``concept_ablation`` returned, or a file of it; rows of an older version may be missing.
    """
    if result.has_signal is False:
        return Verdict(_without_signal(result), _advice_without_signal(result))
    row = _judged(result)
    if row is None:
        return Verdict(
            "No concept was ablated beside a random direction of equal norm, so nothing can be said of concepts.",
            "Run bae-lens ablate again.",
        )
    excess = _beyond(result, row, RANDOM_EQUAL)
    start = f"Taking the concept out of {_PLACES[row.place]} costs {WHO[row.read_by]} "
    if excess.low <= 0:
        less = excess.high < 0
        than = (
            "less accuracy" if less else f"no more accuracy, as far as {_texts(result)} can tell,"
        )
        found = f"{start}{than} than a random direction of equal norm does ({_shown(excess)})"
        return Verdict(_sentence(found, result, row), _advice_on_nothing(result, row))
    controls = [name for name in _CONTROLS if _has(result, row, name)]
    against = {name: _beyond(result, row, name) for name in controls}
    alike = {name: found for name, found in against.items() if found.low <= 0}
    found = f"{start}{_shown(excess)} more accuracy than a random direction of equal norm does"
    beaten = [_CONTROLS[name] for name in controls if name not in alike]
    if beaten:
        found += f", and more than {_listed(beaten)}"
    if alike:
        rest = [f"{_CONTROLS[name]} ({_shown(found)})" for name, found in alike.items()]
        found += f"{';' if beaten else ','} but no more, as far as {_texts(result)} can tell, than "
        found += _listed(rest, "or")
    return Verdict(_sentence(found, result, row), _advice(result, row, list(alike)))


def _judged(result: ConceptAblationResult) -> AblationRow | None:
    for place in _PLACES:
        for read_by in (result.predicted_by, PROBE):
            for concept_of in ("word", "readout"):
                try:
                    row = result.row(place, CONCEPT, concept_of, read_by)
                    result.row(place, RANDOM_EQUAL, concept_of, read_by)
                except KeyError:
                    continue
                return row
    return None


def _beyond(result: ConceptAblationResult, row: AblationRow, control: str) -> Interval:
    """Accuracy that a row costs beyond a control, going below chance not counted."""
    other = result.row(row.place, control, row.concept_of, row.read_by)
    if min(row.accuracy, other.accuracy) >= result.chance:
        return result.excess_over(row, control)
    return drop_difference(row.correct, other.correct, result.chance, result.settings["seed"])


def _has(result: ConceptAblationResult, row: AblationRow, method: str) -> bool:
    try:
        result.row(row.place, method, row.concept_of, row.read_by)
    except KeyError:
        return False
    return True


def _sentence(found: str, result: ConceptAblationResult, row: AblationRow) -> str:
    if row.accuracy < result.chance:
        found += "; what falls below chance is inversion, and is not counted"
    return f"{found}."


def _without_signal(result: ConceptAblationResult) -> str:
    signal = result.signal
    assert signal is not None
    return (
        f"Nothing can be said of concepts: {WHO[result.predicted_by]} predicts no better than chance, as far as "
        f"{_texts(result)} can tell (accuracy less the share of the most frequent class {_shown(signal)})."
    )


def _advice_without_signal(result: ConceptAblationResult) -> str:
    if result.predicted_by != PROBE:
        return "Check the labels against what it predicts, or try --predicted_by probe."
    if _may_have_more(result):
        return "Try --max_examples all."
    if result.settings.get("readout") != "mean":
        return "Try --readout mean, or more labeled texts."
    return "Try more labeled texts, or an SAE of a later layer."


def _advice_on_nothing(result: ConceptAblationResult, row: AblationRow) -> str:
    lower, upper = result.hook_names
    if row.place != LOWER and lower != upper and _has(result, row, LEACE):
        erased = result.change(result.row(row.place, LEACE, "", row.read_by))
        if erased.low <= 0:
            return (
                f"LEACE, which has seen the labels, is not shown to take anything there either ({_shown(erased)}): try "
                f"--hook_name_out {lower}, to read where it is taken out."
            )
    return _advice_on_doubt(result)


def _advice(result: ConceptAblationResult, row: AblationRow, alike: Sequence[str]) -> str:
    if MEAN in alike and not result.settings.get("center", True):
        return "Try --protocol controlled, which takes out first what all tokens share."
    if alike:
        return _advice_on_doubt(result)
    try:
        again = result.row(row.place, CONCEPT + RETRAINED, row.concept_of)
    except KeyError:
        again = None
    if again is not None and (lost := result.change(again)).low <= 0:
        return (
            f"A probe fitted anew is not shown to lose the label (it loses {_shown(lost)}): to take out more of "
            f"it, try --rank {_more_rank(result)}."
        )
    return (
        f"See whether it holds with other random directions and folds, --seed {_number(result, 'seed', 0) + 1}, and read "
        "the concepts with bae-lens report."
    )


def _advice_on_doubt(result: ConceptAblationResult) -> str:
    if _may_have_more(result):
        return "Try --max_examples all, for narrower intervals."
    rank = _number(result, "rank", 1)
    return f"Try --rank {_more_rank(result)}: as many concepts of a token are then taken out together, in place of {rank}."


def _may_have_more(result: ConceptAblationResult) -> bool:
    """Whether the texts were a sample, as far as the result tells."""
    most = result.settings.get("max_examples")
    return isinstance(most, int) and len(result.labels) >= most


def _more_rank(result: ConceptAblationResult) -> int:
    return _MORE_RANK * _number(result, "rank", 1)


def _number(result: ConceptAblationResult, name: str, default: int) -> int:
    value = result.settings.get(name)
    return value if isinstance(value, int) else default


def _texts(result: ConceptAblationResult) -> str:
    return f"{len(result.labels):,} texts"


def _shown(value: Interval) -> str:
    return shown(value, sign="+")


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
