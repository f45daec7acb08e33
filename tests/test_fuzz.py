"""Whatever stands in a file that is read: only our errors come out, soon, and nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bae_lens import TrainingRunner, load_config
from bae_lens.concept_ablation import ConceptAblationResult, LabeledTexts
from bae_lens.entropy.compression import CodeIndices
from bae_lens.examples import LatentRecords
from bae_lens.quiz import QuizKey
from bae_lens.quiz.scores import QuizAnswers
from bae_lens.scoring import ComSemResult, IntruderResult, Ranking, Recoverability
from bae_lens.scoring.judges.answer_cache import AnswerCache
from bae_lens.training.metric_log import read_metric_log
from tests.bad_inputs.runs import saved_sae
from tests.bad_inputs.trial import Trial, command, run
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import make_model, make_text, runner_cfg
from tests.test_saved import FOLDERS

SAVED = FOLDERS[-1]
RESULTS: dict[str, Any] = {
    "evidence.json": LatentRecords.load,
    "intruder.json": IntruderResult.load,
    "comsem.json": ComSemResult.load,
    "concept_ablation.json": ConceptAblationResult.load,
    "ranking.json": Ranking.load,
    "recovery.json": Recoverability.load,
    "quiz.key.json": QuizKey.load,
    "answers.json": QuizAnswers.load,
    "judge_answers.jsonl": AnswerCache,
    "run.json": load_config,
    "run.yaml": load_config,
    "bae/output/metrics.jsonl": read_metric_log,
    "codes.bin": lambda path: CodeIndices.from_bytes(path.read_bytes()),
}


class Edit(NamedTuple):
    """A piece of a file that is replaced."""

    at: float  # share of the file
    length: int
    content: bytes

    def of(self, content: bytes) -> bytes:
        at = int(self.at * len(content))
        return content[:at] + self.content + content[at + self.length :]


_JSON_PIECES = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-1",
        b"0.5",
        b"9" * 30,
        b"9" * 5000,
        b"[" * 3000,
        b'"\\ud800"',
        b"\xff",
        b"\x00",
        b"\n",
        b'{"a": 1}',
        b"[]",
    ]
)
EDITS = st.lists(
    st.builds(
        Edit,
        st.floats(0, 1),
        st.integers(0, 60),
        st.one_of(st.binary(max_size=12), _JSON_PIECES),
    ),
    min_size=1,
    max_size=4,
)
WHOLE = st.one_of(st.binary(max_size=300), _JSON_PIECES)
_SETTINGS: Any = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "derandomize": True,
}


def check(path: Path, good: bytes, read: Callable[[Path], Any], n: int) -> None:
    """n files that a few edits made of a good one, and some that have nothing of it."""

    @settings(max_examples=n, **_SETTINGS)
    @given(st.one_of(EDITS, WHOLE))
    def only_our_errors(change: list[Edit] | bytes) -> None:
        content = change if isinstance(change, bytes) else good
        for edit in change if isinstance(change, list) else ():
            content = edit.of(content)
        path.write_bytes(content)
        result = run(Trial("edited", partial(read, path), ("",), is_told=False))
        assert result.outcome in ("clear", "accepted"), result.message

    only_our_errors()


COUNTS = pytest.mark.parametrize(
    "n", [pytest.param(12, id="few"), pytest.param(1000, id="many", marks=pytest.mark.slow)]
)


@COUNTS
@pytest.mark.parametrize("name", RESULTS)
def test_files(name: str, n: int, tmp_path: Path) -> None:
    path = tmp_path / Path(name).name
    check(path, (SAVED / name).read_bytes(), RESULTS[name], n)


@COUNTS
@pytest.mark.parametrize("name", ["texts.jsonl", "texts.csv"])
def test_labeled_texts(name: str, n: int, tmp_path: Path) -> None:
    rows = [{"text": f"word{i} é", "label": "ab"[i % 2]} for i in range(8)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if name.endswith("csv"):
        lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in rows)]
    check(tmp_path / name, "\n".join(lines).encode(), LabeledTexts.read, n)


@COUNTS
@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors", "eval_metrics.json"])
def test_the_folder_of_a_saved_sae(
    name: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to_tiny(monkeypatch)
    folder = saved_sae(tmp_path / "sae")
    (folder / "eval_metrics.json").write_text('{"code": {"l0": 7.5}}')
    options = ("--n_tokens", "64", "--n_code_tokens", "0", "--n_sentences", "0", "--judge", "none")
    read = command("report", str(folder), *options)
    check(folder / name, (folder / name).read_bytes(), lambda _: read(), n)


@COUNTS
@pytest.mark.parametrize("name", ["description.json", "activations.bin"])
def test_replayed_activations(name: str, n: int, tmp_path: Path) -> None:
    model, text = make_model(), make_text()

    def train(_: Path | None = None) -> None:
        cfg = runner_cfg(tmp_path, 2, output_path=None, checkpoint_path=None)
        TrainingRunner(cfg, text, model, replay_tokens=256, replay_path=tmp_path / "replay").run()

    train()
    [path] = (tmp_path / "replay").rglob(name)
    check(path, path.read_bytes(), train, n)


@COUNTS
@pytest.mark.parametrize(
    "name", ["trainer_state.pt", "random_state.safetensors", "runner_cfg.json"]
)
def test_a_checkpoint(name: str, n: int, tmp_path: Path) -> None:
    model, text = make_model(), make_text()

    def train(resumed: str | None) -> None:
        cfg = runner_cfg(tmp_path, 4, n_checkpoints=1, resume_from_checkpoint=resumed)
        cfg.output_path = None
        cfg.checkpoint_path = cfg.checkpoint_path if resumed is None else None
        TrainingRunner(cfg, text, model, replay_tokens=256).run()

    train(None)
    [path] = (tmp_path / "checkpoints").rglob(name)
    check(path, path.read_bytes(), lambda _: train(str(path.parent)), n)


def test_that_yaml_of_strangers_is_no_code(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    content = yaml.safe_load((SAVED / "run.yaml").read_text())
    text = yaml.safe_dump(content) + f"x: !!python/object/apply:os.mkdir [{planted}]\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")
    assert not planted.exists()
