"""Training steps that are not finite change nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig, synthetic_sae_runner
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from torch import Tensor

from bae_lens import TrainingTopKTranscoderConfig
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.checks.finite import check_trainable
from bae_lens.training import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    SyntheticTrainingRunner,
    TrainingRunner,
)
from bae_lens.training.finite_steps import SKIPPED_KEY, NotFiniteError, skip_steps_not_finite
from bae_lens.training.fit import fit_activations
from tests.helpers import (
    BATCH,
    D_IN,
    HOOK_OUT,
    clvq_cfg,
    make_activations,
    make_model,
    make_text,
    runner_cfg,
    trainer_cfg,
    training_cfg,
)

CONFIGS: dict[str, Any] = {
    "bae": lambda: training_cfg(normalize_activations="none"),
    "clvq_vae": lambda: clvq_cfg(d_out=D_IN, decoder="token", top_k=3),
    "topk_transcoder": lambda: TrainingTopKTranscoderConfig(d_in=D_IN, d_out=D_IN, d_sae=24, k=4),
    "standard": lambda: StandardTrainingSAEConfig(d_in=D_IN, d_sae=24),
    "batchtopk": lambda: BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=24, k=4),
    "jumprelu": lambda: JumpReLUTrainingSAEConfig(d_in=D_IN, d_sae=24),
}
N_STEPS = 20


def make_trainer(name: str, n_steps: int = N_STEPS, **overrides: Any) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(CONFIGS[name]().to_dict())
    data = ReplayedActivations(make_activations(10 * BATCH), BATCH)
    return SAETrainer(trainer_cfg(n_steps, lr_end=1e-4, **overrides), sae, data)


def state_of(trainer: SAETrainer[Any, Any]) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in trainer.sae.state_dict().items()}
    for i, state in enumerate(trainer.optimizer.state.values()):
        found |= {f"{i} {name}": value.clone() for name, value in state.items()}
    found["fired"] = trainer.n_forward_passes_since_fired.clone()
    found["freq"] = trainer.act_freq_scores.clone()
    found["n"] = torch.tensor(trainer.n_frac_active_samples)
    return found


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_that_a_bad_batch_leaves_no_trace(name: str, bad: float, caplog: Any) -> None:
    trainer = make_trainer(name)
    skip_steps_not_finite(trainer)
    for _ in range(3):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
    before, lr = state_of(trainer), trainer.lr_scheduler.get_last_lr()
    batch = next(trainer.data_provider).clone()
    batch[5, 0] = bad
    output = trainer.step(batch)
    assert_equal(state_of(trainer), before)
    assert "Step 4 is skipped" in caplog.text
    if abs(bad) != 3e38:
        assert f"1 of its {BATCH} activations are NaN or infinite" in caplog.text
    log = trainer.build_train_step_log_dict(output=output, n_training_samples=0)
    assert log[SKIPPED_KEY] == 1
    # It counts as a step: the run's length and schedules are those that were asked for.
    assert trainer.n_training_samples == 4 * BATCH
    assert trainer.lr_scheduler.last_epoch == 4
    assert lr
    trainer.n_training_steps += 1
    trainer.step(next(trainer.data_provider))
    after = state_of(trainer)
    assert any(not torch.equal(after[k], before[k]) for k in before)
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())


@pytest.mark.parametrize("name", CONFIGS)
def test_that_a_run_without_any_is_bit_equal(name: str) -> None:
    plain, guarded = make_trainer(name), make_trainer(name)
    skip_steps_not_finite(guarded)
    plain.fit()
    torch.manual_seed(0)
    TrainingSAE.from_dict(CONFIGS[name]().to_dict())  # as many random numbers as above
    guarded.fit()
    if name != "clvq_vae":  # which draws codes, and whose draws go on between the two
        assert_equal(state_of(plain), state_of(guarded))
    assert all(value.isfinite().all() for value in guarded.sae.state_dict().values())


def test_that_a_gradient_alone_is_enough() -> None:
    trainer = make_trainer("standard")
    skip_steps_not_finite(trainer)
    trainer.step(next(trainer.data_provider))
    before = state_of(trainer)
    handle = trainer.sae.W_dec.register_hook(lambda gradient: gradient * float("inf"))
    trainer.step(next(trainer.data_provider))
    assert_equal(state_of(trainer), before)
    handle.remove()


def test_that_a_loss_alone_is_enough() -> None:
    trainer = make_trainer("standard")
    forward = trainer.sae.training_forward_pass

    def with_infinity(step_input: Any) -> Any:
        output = forward(step_input)
        output.loss = output.loss + float("inf")
        return output

    trainer.sae.training_forward_pass = with_infinity
    skip_steps_not_finite(trainer)
    before = state_of(trainer)
    trainer.step(next(trainer.data_provider))
    assert_equal(state_of(trainer), before)
    assert trainer.sae.training_forward_pass is with_infinity


def test_that_training_stops_after_ten_in_a_row(tmp_path: Path) -> None:
    trainer = make_trainer("bae", checkpoint_path=str(tmp_path), n_checkpoints=2)
    skip_steps_not_finite(trainer)
    batches = trainer.data_provider

    def broken() -> Any:
        for i in range(N_STEPS):
            batch = next(batches)
            yield batch if i < 8 else batch * float("nan")

    trainer.data_provider = broken()
    with pytest.raises(
        NotFiniteError, match="stopped at step 18: 64 of its 64 activations"
    ) as info:
        trainer.fit()
    checkpoints = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert str(checkpoints[-1]) in str(info.value)
    assert all(value.isfinite().all() for value in trainer.sae.state_dict().values())


def test_that_the_message_says_where_there_is_no_checkpoint() -> None:
    trainer = make_trainer("bae")
    skip_steps_not_finite(trainer)
    bad = torch.full((BATCH, D_IN), float("nan"))
    trainer.step(next(trainer.data_provider))
    for _ in range(9):
        trainer.step(bad)
    with pytest.raises(NotFiniteError, match=r"no checkpoint to go back to \(n_checkpoints\)"):
        trainer.step(bad)


def test_that_now_and_then_is_borne_up_to_one_in_a_hundred() -> None:
    trainer = make_trainer("standard", n_steps=2000)
    skip_steps_not_finite(trainer)
    good, bad = next(trainer.data_provider), torch.full((BATCH, D_IN), float("inf"))
    for _ in range(20):
        trainer.step(good)
        trainer.step(bad)
    trainer.step(good)
    with pytest.raises(NotFiniteError, match=r"21 steps were not finite .* 1 of them in a row"):
        trainer.step(bad)


def test_that_an_estimate_of_scale_leaves_bad_batches_out(caplog: Any) -> None:
    good, other = make_trainer("bae"), make_trainer("bae")
    activations = make_activations(10 * BATCH)
    bad = torch.cat([torch.full((BATCH, D_IN), float("nan")), activations])
    scalers = []
    for trainer, rows in ((good, activations), (other, bad)):
        skip_steps_not_finite(trainer)
        trainer.activation_scaler.estimate_scaling_factor(D_IN, iter(rows.split(BATCH)), 10)
        scalers.append(trainer.activation_scaler.scaling_factor)
    assert scalers[0] == scalers[1]
    assert "left out of the estimate" in caplog.text


@pytest.mark.parametrize(
    ("value", "match"),
    [(float("nan"), "10 batches in a row"), (0.0, "mean norm"), (3e38, "mean norm")],
)
def test_that_no_scale_comes_of_bad_batches_alone(value: float, match: str) -> None:
    trainer = make_trainer("bae")
    skip_steps_not_finite(trainer)
    batches = iter([torch.full((BATCH, D_IN), value)] * 12)
    with pytest.raises(NotFiniteError, match=match):
        trainer.activation_scaler.estimate_scaling_factor(D_IN, batches, 2)
    assert trainer.activation_scaler.scaling_factor is None


@pytest.mark.parametrize("name", ["bae", "clvq_vae"])
def test_that_a_first_step_that_fails_is_calibrated_anew(name: str) -> None:
    trainer = make_trainer(name)
    skip_steps_not_finite(trainer)
    parameter = next(p for p in trainer.sae.parameters() if p.ndim == 2)
    handle = parameter.register_hook(lambda gradient: gradient * float("inf"))
    trainer.step(next(trainer.data_provider))
    handle.remove()
    before = state_of(trainer)
    trainer.step(next(trainer.data_provider))
    after = state_of(trainer)
    updates = next(key for key in after if key.endswith("n_updates"))
    assert before[updates] == 0 < after[updates]
    assert all(value.isfinite().all() for value in after.values())


def test_that_what_is_not_finite_is_neither_begun_nor_saved(tmp_path: Path) -> None:
    trainer = make_trainer("standard", checkpoint_path=str(tmp_path))
    skip_steps_not_finite(trainer)
    trainer.sae.W_dec.data[1, 2] = float("inf")
    with pytest.raises(
        ValueError, match=r"1 of the .* numbers in W_dec of the autoencoder in trai"
    ):
        trainer.save_checkpoint("64")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="W_dec of the autoencoder that is to be trained"):
        skip_steps_not_finite(trainer)


@pytest.mark.parametrize("name", CONFIGS)
def test_that_float16_is_refused(name: str) -> None:
    trainer = make_trainer(name)
    trainer.sae = trainer.sae.to(torch.float16)
    with pytest.raises(ValueError, match=r"sae\.dtype is 'float16'"):
        skip_steps_not_finite(trainer)
    cfg = CONFIGS[name]()
    cfg.dtype = "float16"
    with pytest.raises(ValueError, match=r"sae\.dtype is 'float16'"):
        fit_activations(cfg, make_activations(2 * BATCH), 2, BATCH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 10**400, "1e-3"])
def test_that_a_learning_rate_is_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match="lr must be a finite number of at least 0"):
        check_trainable("float32", value)
    with pytest.raises(ValueError, match="lr_end must be a finite number of at least 0"):
        check_trainable(torch.float32, 1e-3, value)
    check_trainable("bfloat16", 1e-3, 0.0)


def test_that_synthetic_runs_skip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=24, hidden_dim=20, seed=0),
        sae=training_cfg(d_in=20, d_sae=24, normalize_activations="none"),
        training_samples=12 * BATCH,
        batch_size=BATCH,
        eval_samples=64,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )
    draw, n_drawn = SyntheticActivationIterator.next_batch, 0

    def with_nan(self: Any) -> Tensor:
        nonlocal n_drawn
        n_drawn += 1
        batch = draw(self)
        return batch * float("nan") if n_drawn == 7 else batch

    monkeypatch.setattr(SyntheticActivationIterator, "next_batch", with_nan)
    result = SyntheticTrainingRunner(cfg).run()
    assert n_drawn > 7
    assert all(value.isfinite().all() for value in result.sae.state_dict().values())
    assert synthetic_sae_runner.SAETrainer is SAETrainer
    cfg.sae.dtype = "float16"
    with pytest.raises(ValueError, match=r"sae\.dtype is 'float16'"):
        SyntheticTrainingRunner(cfg)


@pytest.mark.parametrize("is_cross_layer", [False, True])
def test_that_a_run_goes_on_after_a_bad_batch_and_logs_it(
    is_cross_layer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ReplayedActivations.__next__

    def with_nan(self: Any) -> Tensor:
        batch = serve(self)
        if self.n_batches_served == 5:
            batch = batch.clone()
            batch[3, 0] = float("nan")
        return batch

    monkeypatch.setattr(ReplayedActivations, "__next__", with_nan)
    cfg: Any = runner_cfg(tmp_path, n_steps=8)
    cls: Any = TrainingRunner
    if is_cross_layer:
        fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.init}
        fields |= {"sae": clvq_cfg(d_in=D_IN, d_out=D_IN, d_sae=8), "hook_name_out": HOOK_OUT}
        cfg, cls = (
            CrossLayerRunnerConfig(**fields, initialization_tokens=256),
            CrossLayerTrainingRunner,
        )
    cfg.checkpoint_path, cfg.n_checkpoints = str(tmp_path / "checkpoints"), 1
    cfg.sae.dtype = "float16"
    with pytest.raises(ValueError, match=r"sae\.dtype is 'float16'"):
        cls(cfg)
    cfg.sae.dtype = "float32"
    cfg.logger.wandb_log_frequency = 1
    runner = cls(cfg, make_text(), make_model(), replay_tokens=8 * BATCH)
    sae = runner.run()
    assert all(value.isfinite().all() for value in sae.state_dict().values())
    lines = [json.loads(line) for line in runner.metrics_path.read_text().splitlines()]
    skipped = [line[SKIPPED_KEY] for line in lines]
    assert skipped == sorted(skipped)
    assert skipped[-1] == 1
    assert len(lines) == 8
    saved = list(tmp_path.rglob("sae_weights.safetensors"))
    assert saved
    for path in saved:
        assert all(value.isfinite().all() for value in load_file(path).values())
