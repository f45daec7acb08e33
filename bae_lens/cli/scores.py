"""Scores of latents for ``bae-lens report``: who judges them, and where that is kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bae_lens.cli.probe import PROBING_FILENAME
from bae_lens.scoring.comsem_settings import Protocol

if TYPE_CHECKING:
    from bae_lens.examples import LatentRecords
    from bae_lens.report import Result
    from bae_lens.scoring import (
        ComSemResult,
        DryRun,
        EmbeddingJudge,
        EndpointJudge,
        IntruderResult,
        ModelEncoder,
        SparseProbingResult,
    )

_ANSWERS = "judge_answers.jsonl"
_INTRUDER_FILENAME = "intruder.json"
_COMSEM_FILENAMES: dict[Protocol, str] = {
    "balanced": "comsem.json",
    "released": "comsem_released.json",
}
_PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of scores."""
    parser.add_argument(
        "--judge",
        action="append",
        choices=("offline", "endpoint", "none"),
        help="who scores latents. offline: an intruder test with embeddings of MiniLM; endpoint: "
        "phrases and their balanced accuracy (ComSem) by the language model that OPENAI_BASE_URL, "
        "BAE_LENS_JUDGE_MODEL and OPENAI_API_KEY name; may be given twice, for both; default: offline "
        "where MiniLM is installed",
    )
    parser.add_argument(
        "--n_scored",
        type=int,
        default=100,
        help="latents that are scored, drawn at random; 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--protocol",
        type=lambda name: "balanced" if name == "mended" else name,
        choices=(*_PROTOCOLS, "both"),
        default="balanced",
        help="of --judge endpoint; released tests 8 examples only with --n_random 13; both: also how "
        "far they are apart; default: %(default)s",
    )
    parser.add_argument(
        "--max_calls",
        type=int,
        help="requests to the endpoint at most, all dictionaries together; its answers are kept in "
        f"{_ANSWERS} beside the report, and running again goes on from there",
    )
    parser.add_argument(
        "--allow_plain_http",
        action="store_true",
        help="send OPENAI_API_KEY to an endpoint on another machine over http://, where everyone on the "
        "way can read it",
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="collect examples, count what the endpoint would be asked, and write nothing",
    )


@dataclass(frozen=True, eq=False)
class Scoring:
    """What a report's latents are scored by.

    Attributes:
        n_latents: of each dictionary.
        is_asked: whether scores were asked for: what is in their way is an error then, and otherwise
            a line on stderr.
        offline: finds intruders; None: there is no intruder test.
        endpoint: for ComSem; None: there is none.
        dry: counts in place of the endpoint; None: it is asked.
        encoder: finds hard negatives; None: there are none.
        protocols: of ComSem.
    """

    n_latents: int
    is_asked: bool
    offline: EmbeddingJudge | None = None
    endpoint: EndpointJudge | None = None
    dry: DryRun | None = None
    encoder: ModelEncoder | None = None
    protocols: tuple[Protocol, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Scoring:
        """Choose judges by the options.

        Raises:
            ImportError: if the offline judge is asked for and MiniLM is missing.
            ValueError: if options do not go together, a number is negative, or the environment names
                no endpoint.
        """
        from bae_lens.scoring import (
            DryRun,
            EmbeddingJudge,
            EndpointJudge,
            EndpointSettings,
            Limits,
        )

        judges = set(args.judge or ("offline",))
        is_asked = args.judge is not None
        if "none" in judges and len(judges) > 1:
            raise ValueError(f"--judge none stands alone; got {', '.join(args.judge)}.")
        for name in ("n_scored", "max_calls"):
            value = getattr(args, name)
            if value is not None and value < 0:
                raise ValueError(f"--{name} must be at least 0; got {value}.")
        if "endpoint" not in judges and (
            args.max_calls is not None or args.dry_run or args.allow_plain_http
        ):
            raise ValueError(
                "--max_calls, --allow_plain_http and --dry_run are about --judge endpoint; give it as "
                "well."
            )
        if args.dry_run and args.n_scored == 0:
            raise ValueError("--dry_run counts nothing with --n_scored 0.")
        if "none" in judges or args.n_scored == 0:
            return cls(0, is_asked)
        endpoint = None
        if "endpoint" in judges:
            limits = Limits(max_calls=args.max_calls)
            endpoint = EndpointJudge(
                EndpointSettings.from_environment(
                    limits=limits, allow_plain_http=args.allow_plain_http
                )
            )
        lacks = "scores" if endpoint is None else "hard negatives"
        encoder = _encoder(args.device, lacks, "offline" in judges and is_asked)
        asks_offline = "offline" in judges and not args.dry_run and encoder is not None
        return cls(
            args.n_scored,
            is_asked,
            EmbeddingJudge(encoder) if asks_offline else None,
            endpoint,
            DryRun(endpoint) if endpoint and args.dry_run else None,
            encoder,
            _PROTOCOLS if args.protocol == "both" else (args.protocol,),
        )

    def check(self, records: LatentRecords, file: str) -> None:
        """Check that examples which was collected elsewhere has what scores need.

        Raises:
            ValueError: if it has not, and scores were asked for.
        """
        needs_non_activating = self.offline or (self.endpoint and "balanced" in self.protocols)
        if self.is_asked and needs_non_activating and not records.corpus_tokens:
            raise ValueError(
                f"{file} has no tokens known to be non-activating, which --judge needs. "
                "Collect the examples with n_corpus_tokens above 0, or give --judge none."
            )

    def scores(
        self, name: str, records: LatentRecords, output: Path, known: Sequence[Result] = ()
    ) -> list[Result]:
        """Score the latents of one dictionary, each result written beside its report as soon as it is there.

        Args:
            name: of the dictionary, for messages.
            records: of it.
            output: its report.
            known: results that there are already, which come last.

        Raises:
            ValueError: if the judge stopped before the end; or, where scores were asked for, if the
                examples are too few for them.
        """
        from bae_lens.scoring import JudgeUnavailable, LimitReached

        cache = output.with_name(_ANSWERS)
        found: list[Result] = []
        try:
            for file, result in self._results(records, cache):
                found.append(result)
                if self.dry is None:
                    result.save(_beside(output, file))
                    print(f"Written to {_beside(output, file)}")
                    if result.n_unanswered:
                        _say(
                            f"{result.n_unanswered} questions about {name} are open: they have no usable "
                            "answer, and are in no score. Run again to ask them again"
                        )
        except (LimitReached, JudgeUnavailable) as error:
            # It is the user's to change, as the input is.
            raise ValueError(
                f"{error} The cache is {cache}; no report of {name} was written."
            ) from error
        except ValueError as error:
            if self.is_asked:
                raise
            _say(f"no scores of {name}: {error}")
        return [*found, *known]

    def _results(
        self, records: LatentRecords, cache: Path
    ) -> Iterator[tuple[str, IntruderResult | ComSemResult]]:
        """The results with the names of their files."""
        from bae_lens.scoring import ComSemSettings, IntruderSettings, comsem_test, intruder_test
        from bae_lens.scoring.judges.answer_cache import AnswerCache

        if self.offline is not None:
            settings = IntruderSettings(n_latents=self.n_latents)
            yield _INTRUDER_FILENAME, intruder_test(records, self.offline, settings)
        if self.endpoint is None:
            return
        # One judge, and so one limit, for all dictionaries; each keeps its own answers.
        self.endpoint.cache = AnswerCache(cache)
        if self.dry is None:
            n_open = len(self.endpoint.cache.was_open)
            again = f"; {n_open} questions in it had no usable answer: those that come up again are asked again"
            _say(
                f"asking {self.endpoint.name}; its answers are kept in {cache}{again if n_open else ''}"
            )
        for protocol in self.protocols:
            settings = ComSemSettings(protocol, n_latents=self.n_latents)
            judge = self.dry or self.endpoint
            result = comsem_test(records, judge, settings, encoder=self.encoder)
            yield _COMSEM_FILENAMES[protocol], result

    @property
    def count(self) -> str:
        """What a dry run has counted."""
        assert self.dry is not None
        calls, n_in, n_out, _ = self.dry.expected
        n_again = self.dry.n_again
        again = f"; {n_again:,} had no usable answer before and are asked again" if n_again else ""
        return (
            f"{calls:,} calls at most, with about {n_in:,} tokens of questions and {n_out:,} of answers; "
            f"{self.dry.n_cached:,} questions are answered by the cache{again}. Nothing was asked or written."
        )


def saved_probing(folder: Path, sha256: str) -> list[SparseProbingResult]:
    """What ``bae-lens probe`` has written; nothing where it is of other weights, which stderr is told."""
    from bae_lens.fingerprint import is_of_weights
    from bae_lens.scoring import SparseProbingResult

    path = folder / PROBING_FILENAME
    if not path.is_file():
        return []
    result = SparseProbingResult.load(path)
    if is_of_weights(result.weights_sha256, sha256, str(path)):
        return [result]
    _say(f"{path} is of other weights, and left out: run bae-lens probe again")
    return []


def saved_scores(folder: Path, sha256: str) -> list[IntruderResult | ComSemResult]:
    """What ``bae-lens report`` has found of latents; what is of other weights is left out, which stderr is told."""
    from bae_lens.fingerprint import is_of_weights
    from bae_lens.scoring import ComSemResult, IntruderResult

    found: list[IntruderResult | ComSemResult] = []
    for name, kind in (
        (_INTRUDER_FILENAME, IntruderResult),
        *((name, ComSemResult) for name in _COMSEM_FILENAMES.values()),
    ):
        path = folder / name
        if not path.is_file():
            continue
        result = kind.load(path)
        if is_of_weights(result.weights_sha256, sha256, str(path)):
            found.append(result)
        else:
            _say(f"{path} is of other weights, and left out: run bae-lens report again")
    return found


def _beside(output: Path, file: str) -> Path:
    """``file`` beside ``report.html``; beside ``x.html`` it is ``x.file``, so that it replaces that of
    no other report."""
    return output.with_name(f"{output.stem}.{file}".removeprefix("report."))


def _encoder(device: str, lacks: str, is_needed: bool) -> ModelEncoder | None:
    """MiniLM; None where it is not installed, and on stderr what there is not without it."""
    from bae_lens.scoring import ModelEncoder

    try:
        return ModelEncoder.minilm(device)
    except ImportError as error:
        if is_needed:
            raise
        _say(f"no {lacks}: {' '.join(str(error).split())}")
        return None


def _say(text: str) -> None:
    print(f"bae-lens: {text}", file=sys.stderr)
