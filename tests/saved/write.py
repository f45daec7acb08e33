"""``python -m tests.saved.write FOLDER``: one of each file that this version writes, of tiny models.

Run once for a version, and kept: what users have saved goes on loading.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from sae_lens import LoggingConfig

from bae_lens import CrossLayerRunnerConfig, CrossLayerTrainingRunner, TrainingRunner
from bae_lens.architectures.topk_transcoder import TrainingTopKTranscoderConfig
from bae_lens.entropy.compression import encode_to_indices
from bae_lens.quiz.questions import write_quiz
from bae_lens.scoring.judges.answer_cache import AnswerCache, key_of
from bae_lens.scoring.ranking import rank_dictionaries
from tests.concept_ablation.test_result import make_result
from tests.helpers import (
    BATCH,
    D_IN,
    HOOK_OUT,
    clvq_cfg,
    make_activations,
    make_bae,
    make_model,
    make_text,
    make_training_bae,
    runner_cfg,
)
from tests.quiz.quizzes import EVIDENCE, RECOVERIES, answered, shown_class
from tests.report.helpers import make_comsem, make_intruder, make_records
from tests.scoring.test_ranking import SETTINGS, THREE, Named, fair

N_STEPS, REPLAYED = 12, 20 * BATCH


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)  # No path of this machine in what is written.
    folder = Path()
    for name, sae in (
        ("bae", None),
        ("clvq_vae", clvq_cfg(d_out=D_IN, top_k=3)),
        ("topk_transcoder", TrainingTopKTranscoderConfig(d_in=D_IN, d_out=D_IN, d_sae=24, k=4)),
    ):
        _train(folder / name, sae)
    _replay(folder / "replay")
    config = runner_cfg(Path("run")).to_dict()
    (folder / "run.json").write_text(json.dumps(config))
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    make_bae().save_model(folder / "bae_by_hand")
    make_training_bae().save_model(folder / "training_bae_by_hand")
    metrics = {"code": {"l0": 7.5, "n_tokens": 200, "mse": None}}
    (folder / "bae" / "output" / "eval_metrics.json").write_text(json.dumps(metrics))
    (folder / "codes.bin").write_bytes(
        encode_to_indices(make_training_bae(), make_activations(50)).to_bytes()
    )
    _results(folder)


def _train(folder: Path, sae: object) -> None:
    """A run with a checkpoint in its middle, in relative paths."""
    model, text = make_model(), make_text()
    paths = {"checkpoint_path": str(folder / "checkpoints"), "output_path": str(folder / "output")}
    options = {"n_checkpoints": 1, "logger": LoggingConfig(log_to_wandb=False), **paths}
    options["logger"].wandb_log_frequency = 2
    if sae is None:
        TrainingRunner(
            runner_cfg(folder, N_STEPS, **options), text, model, replay_tokens=REPLAYED
        ).run()
    else:
        whole = vars(runner_cfg(folder, N_STEPS, **options))
        names = {field.name for field in fields(CrossLayerRunnerConfig) if field.init}
        own = {name: whole[name] for name in names & set(whole) - {"sae"}}
        cfg = CrossLayerRunnerConfig(
            sae=sae, hook_name_out=HOOK_OUT, initialization_tokens=256, **own
        )
        CrossLayerTrainingRunner(cfg, text, model, replay_tokens=REPLAYED).run()
    [state] = (folder / "checkpoints").rglob("trainer_state.pt")
    shutil.move(state.parent, folder / "checkpoint")
    shutil.rmtree(folder / "checkpoints")


def _replay(folder: Path) -> None:
    folder.mkdir()
    cfg = runner_cfg(folder, 2, output_path=None, checkpoint_path=None)
    TrainingRunner(
        cfg, make_text(), make_model(), replay_tokens=4 * BATCH, replay_path=folder
    ).run()


def _results(folder: Path) -> None:
    records = make_records(12, n_examples=3)
    records.save(folder / "evidence.json")
    make_intruder(records, 3).save(folder / "intruder.json")
    make_comsem(records, 3).save(folder / "comsem.json")
    make_result().save(folder / "concept_ablation.json")
    rank_dictionaries(THREE, Named("x", fair), SETTINGS).save(folder / "ranking.json")
    next(iter(RECOVERIES.values())).save(folder / "recovery.json")
    key = write_quiz(folder / "quiz.html", RECOVERIES, EVIDENCE)
    (folder / "quiz.html").unlink()  # A page is read by people.
    (folder / "answers.json").write_text(json.dumps(answered(key, shown_class).to_dict()))
    cache = AnswerCache(folder / "judge_answers.jsonl")
    cache.put(key_of({"a": 1}), "yes", {"task": "match"})
    # As versions until this one kept a question without an answer.
    with (folder / "judge_answers.jsonl").open("a") as file:
        file.write(json.dumps({"key": key_of({"a": 2}), "answer": None, "task": "match"}) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]))
