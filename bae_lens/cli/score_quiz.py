"""``bae-lens score-quiz ANSWERS … --key KEY``: what people told from words and contexts of concepts."""

from __future__ import annotations

import argparse
from pathlib import Path

from bae_lens.cli.saved import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "answers",
        nargs="+",
        metavar="ANSWERS",
        help="files that readers saved from the page of bae-lens quiz, one per reader",
    )
    parser.add_argument(
        "--key", required=True, help="of the quiz: the file that was written beside its page"
    )
    parser.add_argument("--output", help="JSON file to write, too")


def run_score_quiz(args: argparse.Namespace) -> int:
    from bae_lens.quiz.questions import QuizKey
    from bae_lens.quiz.scores import QuizAnswers, score_quiz

    if args.output:
        check_output(Path(args.output), args.key, *args.answers)
    key = QuizKey.load(args.key)
    result = score_quiz(key, [QuizAnswers.load(path) for path in args.answers])
    print(result.table())
    if args.output:
        result.save(args.output)
        print(f"\nWritten to {args.output}")
    return 0
