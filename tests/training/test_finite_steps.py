"""Training steps that are not finite change nothing."""

from __future__ import annotations

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
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingTopKTranscoderConfig
from bae_lens.training.finite_steps import SKIPPED_KEY, NotFiniteError, skip_steps_not_finite
from bae_lens.training.replay import ReplayedActivations
from tests.helpers import BATCH, D_IN, clvq_cfg, make_activations, trainer_cfg, training_cfg

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
