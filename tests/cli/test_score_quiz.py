"""``bae-lens score-quiz``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bae_lens.cli import main
from bae_lens.files.json_file import write_json
from bae_lens.quiz.questions import QuizSettings, key_path, write_quiz
from bae_lens.quiz.scores import QuizResult
from tests.quiz.quizzes import EVIDENCE, RECOVERIES, answered, shown_class


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    page = tmp_path / "quiz.html"
    key = write_quiz(page, RECOVERIES, EVIDENCE, QuizSettings(n_texts=8))
    write_json(tmp_path / "anna.json", answered(key, shown_class).to_dict())
    write_json(tmp_path / "ben.json", answered(key, lambda _: -1, "").to_dict())
    return str(key_path(page))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["score-quiz", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("bae-lens: error: ")
    return err


def test_the_table_is_printed_and_written(tmp_path, key_file, capsys):
    output = tmp_path / "new" / "scores.json"
    argv = [str(tmp_path / "anna.json"), str(tmp_path / "ben.json"), "--key", key_file]
    assert main(["score-quiz", *argv, "--output", str(output)]) == 0
    result = QuizResult.load(output)
    assert result.readers == ("anna", "ben")
    assert result.accuracy("sharp one", "anna") == (1, 1, 1)
    out = capsys.readouterr().out
    assert out == f"{result.table()}\n\nWritten to {output}\n"
    assert "| sharp one | anna | 1.000 [1.000, 1.000] |" in out


def test_what_is_no_answer_is_refused(tmp_path, key_file, capsys):
    anna = tmp_path / "anna.json"
    assert "no file" in refused(capsys, str(tmp_path / "none.json"), "--key", key_file)
    assert "no file" in refused(capsys, str(anna), "--key", str(tmp_path / "none.json"))
    assert "is no key of a quiz" in refused(capsys, str(anna), "--key", str(anna))
    assert "is no file of answers" in refused(capsys, key_file, "--key", key_file)
    assert "given twice" in refused(capsys, str(anna), str(anna), "--key", key_file)
    (tmp_path / "broken.json").write_text('{"quiz": "')
    assert "broken.json is no file of answers that a quiz saved: it is no JSON" in refused(
        capsys, str(tmp_path / "broken.json"), "--key", key_file
    )
    values = json.loads(anna.read_text())
    write_json(tmp_path / "other.json", values | {"quiz": "0" * 64})
    output = tmp_path / "scores.json"
    argv = [str(tmp_path / "other.json"), "--key", key_file, "--output", str(output)]
    assert "another quiz" in refused(capsys, *argv)
    assert not output.exists()


def test_it_is_among_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "score-quiz" in capsys.readouterr().out
