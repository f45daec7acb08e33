"""Help, versions and mistakes are answered before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from bae_lens.cli import _COMMANDS, main

# One process for all: what is heavy would stay imported.
_ASK = """
import contextlib, io, json, sys
sys.argv[0] = "bae-lens"
from bae_lens.cli import main

heavy = {"torch", "transformers", "datasets", "sae_lens", "transformer_lens", "sklearn", "scipy", "pandas"}
answers = []
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code
    answers.append([status, out.getvalue(), err.getvalue(), sorted(heavy & set(sys.modules))])
print(json.dumps(answers))
"""


def _answers(*questions: list[str]) -> list[tuple[int, str, str, list[str]]]:
    command = [sys.executable, "-c", _ASK, json.dumps(questions)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_help_versions_and_mistakes_import_nothing_heavy() -> None:
    helped = [["-h"], *([command, "--help"] for command in _COMMANDS)]
    wrong = [
        ([], "arguments are required: COMMAND"),
        (["evaluate"], "invalid choice: 'evaluate'"),
        (["eval"], "arguments are required: path"),
        (["eval", "folder", "--n_eval_batches", "x"], "invalid int value: 'x'"),
        (["report", "folder", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["ablate", "folder", "--data", "d", "--readout", "middle"], "invalid choice: 'middle'"),
        (["quiz", "folder", "--data", ""], "arguments are required: --reference"),
        (["finetune", "data", "--output", ""], "bae-lens: error: --output is empty. Give it a"),
    ]
    answers = _answers(*helped, ["--version"], *(argv for argv, _ in wrong))

    for argv, (status, out, err, heavy) in zip(helped, answers, strict=False):
        assert (status, err, heavy) == (0, "", []), argv
        assert out.startswith(f"usage: {' '.join(['bae-lens', *argv[:-1]])}")
    status, out, err, heavy = answers[len(helped)]
    assert (status, err, heavy) == (0, "", [])
    assert out.splitlines()[:2] == [
        f"bae-lens {version('bae-lens')}",
        f"sae-lens {version('sae-lens')}",
    ]
    assert {line.split()[0] for line in out.splitlines()} >= {"transformer-lens", "torch", "python"}
    for (argv, message), (status, out, err, heavy) in zip(
        wrong, answers[len(helped) + 1 :], strict=True
    ):
        assert (status, out, heavy) == (2, "", []), argv
        assert message in err


def test_a_version_that_pip_does_not_know_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bae_lens.cli._VERSIONS", ("bae-lens", "no-such-package"))
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert "no-such-package unknown\n" in capsys.readouterr().out
