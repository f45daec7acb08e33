"""A run keeps the norm that outlier tokens are told by, and drops them where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, ActivationsStore

from bae_lens import CrossLayerRunnerConfig, CrossLayerTrainingRunner, TrainingRunner
from bae_lens.activations.outlier_tokens import reference_norm
from tests.helpers import (
    BATCH,
    D_IN,
    HOOK,
    HOOK_OUT,
    SINK,
    clvq_cfg,
    make_sinking_model,
    make_text,
    runner_cfg,
)


def rows_of(folder: Path, hook: str = HOOK) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and activations of the text's tokens that count, from a plain pass."""
    cfg, model = runner_cfg(folder), make_sinking_model()
    tokens = ActivationsStore.from_config(model, cfg, make_text()).get_batch_tokens(100)
    _, cache = model.run_with_cache(tokens, names_filter=[hook])
    counts = tokens > 3
    return tokens[counts], cache[hook][counts]


def run(folder: Path, **options: Any) -> Any:
    runner = TrainingRunner(
        runner_cfg(folder),
        override_dataset=make_text(),
        override_model=make_sinking_model(),
        **options,
    )
    runner.run()
    return runner


@pytest.mark.parametrize("replay_tokens", [None, 6 * BATCH])
def test_the_reference_norm_is_kept_with_the_sae(tmp_path, replay_tokens):
    run(tmp_path, replay_tokens=replay_tokens)

    saved = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    _, x = rows_of(tmp_path)
    expected = reference_norm(x[:replay_tokens])
    assert saved.outlier_reference_norms[HOOK] == pytest.approx(expected, rel=0.1)
    assert saved.exclude_outlier_tokens is None


def test_sinks_are_in_the_rows_unless_they_are_to_be_dropped(tmp_path):
    ids, x = rows_of(tmp_path)
    kept = run(tmp_path / "a", replay_tokens=6 * BATCH).activations_store.activations
    torch.testing.assert_close(kept, x[: 6 * BATCH])

    runner = run(tmp_path / "b", replay_tokens=6 * BATCH, exclude_outlier_tokens=True)

    without = runner.activations_store.activations
    assert (ids[: 6 * BATCH] == SINK).any()
    torch.testing.assert_close(without, x[ids != SINK][: 6 * BATCH])
    assert runner.sae.cfg.metadata.exclude_outlier_tokens == 10


def test_without_replay_they_are_dropped_from_what_is_served(tmp_path):
    runner = run(tmp_path, exclude_outlier_tokens=5)
    norm = runner.sae.cfg.metadata.outlier_reference_norms[HOOK]
    served = torch.cat([runner.activations_store.get_filtered_llm_batch() for _ in range(3)])
    assert 0 < served.norm(dim=1).max() <= 5 * norm


def test_rows_on_disk_are_of_one_setting(tmp_path):
    path = tmp_path / "rows"
    run(tmp_path / "a", replay_tokens=6 * BATCH, replay_path=path)
    # The language model is not run, and the norm is the same.
    again = run(tmp_path / "b", replay_tokens=6 * BATCH, replay_path=path)
    first, second = (
        SAE.load_from_disk(tmp_path / name / "output").cfg.metadata.outlier_reference_norms
        for name in "ab"
    )
    assert first == second == again.sae.cfg.metadata.outlier_reference_norms
    with pytest.raises(ValueError, match=r"exclude_outlier_tokens is None there and 10\.0 here"):
        run(tmp_path / "c", replay_tokens=6 * BATCH, replay_path=path, exclude_outlier_tokens=True)


@pytest.mark.parametrize("replay_tokens", [None, 6 * BATCH])
@pytest.mark.parametrize("exclude", [False, 10.0])
def test_two_hook_points_have_a_norm_each(tmp_path, replay_tokens, exclude):
    fields = vars(runner_cfg(tmp_path)) | {
        "sae": clvq_cfg(d_out=D_IN, decoder="token"),
        "hook_name_out": HOOK_OUT,
    }
    names = CrossLayerRunnerConfig.__dataclass_fields__
    cfg = CrossLayerRunnerConfig(
        **{k: v for k, v in fields.items() if k in names and names[k].init}
    )
    runner = CrossLayerTrainingRunner(
        cfg,
        override_dataset=make_text(),
        override_model=make_sinking_model(),
        replay_tokens=replay_tokens,
        exclude_outlier_tokens=exclude,
    )
    runner.run()

    norms = SAE.load_from_disk(tmp_path / "output").cfg.metadata.outlier_reference_norms
    for hook in (HOOK, HOOK_OUT):
        expected = reference_norm(rows_of(tmp_path, hook)[1][:replay_tokens])
        assert norms[hook] == pytest.approx(expected, rel=0.1)
    store = runner.activations_store
    rows: Any = store.activations if replay_tokens else next(iter(store))  # pyright: ignore[reportAttributeAccessIssue]
    longest = rows[:, :D_IN].norm(dim=1).max()
    assert bool(longest > 10 * norms[HOOK]) == (not exclude)


def test_a_multiple_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="exclude_outlier_tokens must be a positive number"):
        TrainingRunner(runner_cfg(tmp_path), exclude_outlier_tokens=-1)
