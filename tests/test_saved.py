"""What earlier versions wrote goes on loading: ``tests/saved`` holds one of each file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE

from bae_lens import CrossLayerTrainingRunner, TrainingRunner, load_config
from bae_lens.cli import main
from bae_lens.concept_ablation import ConceptAblationResult
from bae_lens.entropy.compression import CodeIndices, encode_to_indices
from bae_lens.examples import LatentRecords
from bae_lens.quiz import QuizKey
from bae_lens.quiz.scores import QuizAnswers, score_quiz
from bae_lens.scoring import ComSemResult, IntruderResult, Ranking, Recoverability
from bae_lens.scoring.judges.answer_cache import AnswerCache, key_of
from bae_lens.training.config_file import build_config
from bae_lens.training.metric_log import read_metric_log
from tests.cli.helpers import resolve_to_tiny
from tests.concept_ablation.test_result import make_result
from tests.helpers import make_activations, make_bae, make_model, make_text, make_training_bae
from tests.report.helpers import make_comsem, make_intruder, make_records
from tests.saved.write import N_STEPS, REPLAYED

FOLDERS = sorted(
    path for path in (Path(__file__).parent / "saved").iterdir() if (path / "run.json").is_file()
)


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    return Path(shutil.copytree(request.param, tmp_path / "saved"))


def test_results(saved: Path) -> None:
    records = make_records(12, n_examples=3)
    loaded = LatentRecords.load(saved / "evidence.json")
    assert [own.top_tokens for own in loaded.latents] == [own.top_tokens for own in records.latents]
    assert [own.strongest for own in loaded.latents] == [own.strongest for own in records.latents]
    assert loaded.weights_sha256 is None
    assert IntruderResult.load(saved / "intruder.json") == make_intruder(records, 3)
    assert ComSemResult.load(saved / "comsem.json").runs == make_comsem(records, 3).runs
    assert ConceptAblationResult.load(saved / "concept_ablation.json").rows == make_result().rows
    assert Ranking.load(saved / "ranking.json").win_rate("clear one") is not None
    assert Recoverability.load(saved / "recovery.json").n_learned == 100


def test_a_quiz(saved: Path) -> None:
    result = score_quiz(
        QuizKey.load(saved / "quiz.key.json"), [QuizAnswers.load(saved / "answers.json")]
    )
    assert result.readers == ("anna",)


def test_answers_of_a_judge(saved: Path) -> None:
    cache = AnswerCache(saved / "judge_answers.jsonl")
    assert cache[key_of({"a": 1})] == "yes"


def test_codes(saved: Path) -> None:
    expected = encode_to_indices(make_training_bae(), make_activations(50))
    assert torch.equal(
        CodeIndices.from_bytes((saved / "codes.bin").read_bytes()).bits(), expected.bits()
    )


def test_weights(saved: Path) -> None:
    own = make_bae().state_dict()
    loaded = SAE.load_from_disk(saved / "bae_by_hand").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in own.items())
    assert (
        TrainingSAE.load_from_disk(saved / "training_bae_by_hand").cfg.d_sae == make_bae().cfg.d_sae
    )
    for name in ("bae", "clvq_vae", "topk_transcoder"):
        sae = SAE.load_from_disk(saved / name / "output")
        assert sae.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
        assert sae(make_activations(8)).isfinite().all()
        assert len(read_metric_log(saved / name / "output" / "metrics.jsonl")["step"]) > 0


@pytest.mark.parametrize("name", ["run.json", "run.yaml"])
def test_a_config(saved: Path, name: str) -> None:
    assert load_config(saved / name).runner.sae.architecture() == "bae"


@pytest.mark.parametrize("name", ["bae", "clvq_vae", "topk_transcoder"])
def test_a_checkpoint_is_resumed_and_ends_where_the_run_ended(
    saved: Path, name: str, tmp_path: Path
) -> None:
    content = json.loads((saved / name / "checkpoint" / "runner_cfg.json").read_text())
    cfg: Any = build_config(_as_a_config(content)).runner
    cfg.resume_from_checkpoint = str(saved / name / "checkpoint")
    cfg.output_path, cfg.checkpoint_path = str(tmp_path / "output"), str(tmp_path / "checkpoints")
    runner = TrainingRunner if name == "bae" else CrossLayerTrainingRunner
    runner(cfg, make_text(), make_model(), replay_tokens=REPLAYED).run()
    # What it does, and not each weight: the gradient of a key's bias is nothing but rounding.
    x = make_activations(64)
    expected = SAE.load_from_disk(saved / name / "output")(x)
    found = SAE.load_from_disk(tmp_path / "output")(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def _as_a_config(content: dict[str, Any]) -> dict[str, Any]:
    """What SAELens writes beside a checkpoint has what it works out by itself, too."""
    for own in ("tokens_per_buffer", "sae_lens_version", "sae_lens_training_version"):
        content.pop(own, None)
    return content


def test_replayed_activations(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "run.json").read_text())
    cfg: Any = build_config(_as_a_config(content)).runner
    cfg.output_path = cfg.checkpoint_path = None
    cfg.training_tokens = 2 * cfg.train_batch_size_tokens
    before = (saved / "replay" / "collection" / "activations.bin").read_bytes()
    TrainingRunner(
        cfg,
        make_text(),
        make_model(),
        replay_tokens=4 * cfg.train_batch_size_tokens,
        replay_path=saved / "replay",
    ).run()
    assert (saved / "replay" / "collection" / "activations.bin").read_bytes() == before


def test_a_report_of_what_lies_in_a_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to_tiny(monkeypatch)
    folder = saved / "bae" / "output"
    options = ("--n_tokens", "100", "--n_sentences", "2", "--judge", "none")
    content = json.loads((folder / "cfg.json").read_text())
    known = {"model_name": "bae-lens/tiny", "dataset_path": "bae-lens/tiny-text"}
    content["metadata"] |= known | {"model_from_pretrained_kwargs": None}
    (folder / "cfg.json").write_text(json.dumps(content))
    assert main(["report", str(folder), *options]) == 0
    assert (folder / "report.html").is_file()
    assert N_STEPS > 0
