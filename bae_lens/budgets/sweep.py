"""Short trainings at different budgets, on activations that the language model computes once."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    TrainingSAE,
)
from torch import Tensor

from bae_lens.activations.collecting import read_rows
from bae_lens.activations.held_out import held_out_store, rows_after
from bae_lens.activations.read_once import ReadOnce
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.budgets.options import SweepSettings, budget_field, budgets_of
from bae_lens.budgets.result import BudgetPoint, BudgetSweep, is_near
from bae_lens.checks.fields import shown
from bae_lens.evals.summarize import summarize_code
from bae_lens.examples.collect import collect_examples
from bae_lens.examples.records import ExampleSettings
from bae_lens.offline import is_demo_dataset
from bae_lens.scoring.intruder import intruder_test
from bae_lens.scoring.intruder_result import IntruderSettings
from bae_lens.scoring.tested_latents import TestedLatents
from bae_lens.training.config_file import RunConfig
from bae_lens.training.cross_layer_runner import CrossLayerRunnerConfig
from bae_lens.training.fit import fit_activations
from bae_lens.training.outliers import keep_reference_norms
from bae_lens.training.runner_fields import check_steps

if TYPE_CHECKING:
    from bae_lens.scoring import Judge

logger = logging.getLogger(__name__)

_HELD_OUT = 5  # One token in so many.
_MAGNITUDE_BITS = 4
# The entropy's coefficient at one bit per input dimension, and how it grows with fewer: near where long trainings end
# (SmolLM2, seven levels: 0.6 at 36 bits, 0.005 to 0.01 at 576).
_COEFFICIENT, _POWER = 0.01, 1.5
# Fewer say nothing; more than the config's own are not asked for.
_LEAST_STEPS = 50
# Steps by which the time of one is measured; and the part of the time that is left to judges.
_TIMED_STEPS, _JUDGING = 5, 0.2
# Trainings a budget, since some are trained again.
_AGAIN = 1.5


def sweep_budgets(
    config: RunConfig,
    settings: SweepSettings | None = None,
    judge: Judge | None = None,
    *,
    override_dataset: Any = None,
    override_model: Any = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = logger.info,
) -> BudgetSweep:
    """Train an architecture for a few steps at each of several budgets, and score what comes out on held-out tokens.

    The language model reads the text once: its activations are kept and replayed to each training, and so are those of
    the text from which the intruder test's examples are taken. No training reads that: of ``bae-lens/movie-reviews`` it
    is the split "test", of any other text the rows after those that are trained on. Each training has the config's
    batch, learning rate and autoencoder, with ``fit_activations``' schedule. Nothing is saved.

    Args:
        config: what ``load_config`` returns, of one hook point of a language model.
        settings: the defaults if omitted.
        judge: takes the intruder test; None: there is none. Nor is there one, which is said, where no text is left that
            is not trained on.
        override_dataset: as for ``TrainingRunner``.
        override_model: as for ``TrainingRunner``.
        trust_remote_code: as for ``TrainingRunner``.
        say: is told what is done.

    Raises:
        ValueError: if the config is of synthetic data, of two hook points or of activations on disk, its architecture has no
            budget, a budget is none for it, there are fewer tokens than a batch, or fewer training_tokens; and whatever ``TrainingRunner`` raises.
    """
    settings = settings or SweepSettings()
    cfg, field, budgets = check_sweep(config, settings)
    batch_size = cfg.train_batch_size_tokens
    runner: Any = RunConfig(cfg).make_runner(
        override_dataset, override_model, trust_remote_code=trust_remote_code
    )
    started = time.monotonic()
    say(f"Reading {settings.n_tokens:,} tokens once")
    replay, n_rows_at = _collected(runner.activations_store, settings.n_tokens)
    # As the runner itself does when it trains: the text and the norm of outliers are in what is saved.
    runner.activations_store = replay
    runner._set_sae_metadata()
    keep_reference_norms(runner)
    rows = replay.activations
    n_held_out = max(len(rows) // _HELD_OUT, 1)
    training, held_out = rows[:-n_held_out], rows[-n_held_out:]
    model = ReadOnce(runner.model)
    text = None
    if judge is not None and settings.n_judged > 0:
        is_demo = override_dataset is None and is_demo_dataset(cfg.dataset_path)
        n_rows = next(n_rows for n_tokens, n_rows in n_rows_at if n_tokens >= len(training))
        # By its name that has a split of its own.
        text = cfg.dataset_path if is_demo else rows_after(runner._text, n_rows)
        try:
            held_out_store(runner.sae, runner.model, text).get_batch_tokens(
                1, raise_at_epoch_end=True
            )
        except (ValueError, StopIteration) as error:
            say(f"No intruder test, since none could be on text that is not trained on: {error}")
            judge = None

    coefficients = _Coefficients(cfg.sae.d_in)

    def first_coefficient(budget: float, again: bool = False) -> float | None:
        return coefficients.start(budget, again) if field == "target_entropy" else None

    def fitted(budget: float, n_steps: int, start: float | None) -> TrainingSAE[Any]:
        own = _with_budget(runner.sae.cfg, budget, n_steps, start)
        seed, device = settings.seed, cfg.device
        return fit_activations(own, training, n_steps, batch_size, cfg.lr, seed, device)

    def trained(budget: float, n_steps: int, again: bool = False) -> TrainingSAE[Any]:
        start = first_coefficient(budget, again)
        sae = fitted(budget, n_steps, start)
        if start is not None:
            coefficients.ended(budget, start * sae.log_entropy_multiplier.exp().item())  # pyright: ignore[reportCallIssue]
        return sae

    n_config_steps = cfg.training_tokens // batch_size
    n_steps = settings.n_steps
    if n_steps is None:
        begun = time.monotonic()
        # Of which the coefficients learn nothing.
        middle = budgets[len(budgets) // 2]
        fitted(middle, _TIMED_STEPS, first_coefficient(middle))
        per_step = (time.monotonic() - begun) / _TIMED_STEPS
        left = 60 * settings.minutes * (1 if judge is None else 1 - _JUDGING)
        left -= time.monotonic() - started
        n_most = int(left / (_AGAIN * len(budgets) * per_step))
        n_steps = min(max(n_most, _LEAST_STEPS), n_config_steps)
    points = []
    for budget in budgets:
        say(f"Training at {field} {budget:g}, {n_steps:,} steps")
        sae = _as_saved(trained(budget, n_steps), cfg.device)
        point = _scored(sae, budget, held_out)
        if field == "target_entropy" and not is_near(point):
            say(f"It came to {point.bits:.0f} bits: once more, from the coefficient at its end")
            sae = _as_saved(trained(budget, n_steps, again=True), cfg.device)
            point = _scored(sae, budget, held_out)
        if judge is not None and settings.n_judged > 0:
            point = _judged(point, sae, model, text, settings, judge)
        points.append(point)
    return BudgetSweep(
        field=field,
        architecture=cfg.sae.architecture(),
        model_name=cfg.model_name,
        hook_name=cfg.hook_name,
        d_in=cfg.sae.d_in,
        d_sae=cfg.sae.d_sae,
        n_steps=n_steps,
        n_config_steps=n_config_steps,
        batch_size=batch_size,
        n_tokens=len(training),
        n_held_out=n_held_out,
        judge=None if judge is None or settings.n_judged == 0 else judge.name,
        points=tuple(points),
    )


def _collected(store: Any, n_tokens: int) -> tuple[ReplayedActivations, list[tuple[int, int]]]:
    """The first tokens of a store of text, and after each forward pass how many they are and how many rows of the text
    they are from."""
    batches, n_rows_at, n_read = [], [], 0
    for batch in read_rows(store, n_tokens):
        batches.append(batch)
        n_read += len(batch)
        # Of the row after those that the store counts the beginning may have been read.
        n_rows_at.append((n_read, store.n_dataset_processed + 1))
    rows = torch.cat(batches) if batches else torch.empty(0, 0)
    return ReplayedActivations(rows, store.train_batch_size_tokens, store=store), n_rows_at


class Checked(NamedTuple):
    """What is swept: a config that saves nothing, the field that is its budget, and the values to try."""

    cfg: LanguageModelSAERunnerConfig[Any]
    field: str
    budgets: tuple[float, ...]


def check_sweep(config: RunConfig, settings: SweepSettings) -> Checked:
    """That ``sweep_budgets`` can do what it is asked for, before anything is loaded.

    Raises:
        ValueError: see ``sweep_budgets``.
    """
    cfg = _checked(config.runner)
    check_steps(cfg)
    field = budget_field(cfg.sae)
    budgets = budgets_of(cfg.sae, field, settings.budgets)
    batch_size = cfg.train_batch_size_tokens
    if settings.n_tokens - settings.n_tokens // _HELD_OUT < batch_size:
        raise ValueError(
            f"n_tokens is {settings.n_tokens}, of which one in {_HELD_OUT} is held out, and a training step needs "
            f"train_batch_size_tokens = {batch_size}. Read more tokens, or lower the batch."
        )
    return Checked(cfg, field, budgets)


def _checked(cfg: Any) -> LanguageModelSAERunnerConfig[Any]:
    """A config of the same run that saves, resumes and logs nothing."""
    if isinstance(cfg, CrossLayerRunnerConfig) or not isinstance(cfg, LanguageModelSAERunnerConfig):
        raise ValueError(
            "Budgets are swept for an autoencoder of one hook point of a language model; got a config of "
            f"{type(cfg).__name__} ({cfg.sae.architecture()})."
        )
    if cfg.use_cached_activations:
        raise ValueError(
            f"Budgets are swept on text that the language model reads; got use_cached_activations {shown(True)}. "
            "Set it to false."
        )
    own = copy.copy(cfg)
    own.output_path = own.checkpoint_path = None  # pyright: ignore[reportAttributeAccessIssue]
    own.resume_from_checkpoint = own.from_pretrained_path = None
    own.n_checkpoints, own.logger = 0, LoggingConfig(log_to_wandb=False)
    return own


class _Coefficients:
    """Where the entropy's coefficient starts: a budget moves it by 2 % a step at most, so that a short training ends
    where it started.

    Of the first budget near where long trainings end; of the next ones as far from there as the one before came; and of
    one that is trained again, where it came to.
    """

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in
        self._factor = 1.0
        self._came_to: dict[float, float] = {}

    def start(self, budget: float, again: bool) -> float:
        return self._came_to[budget] if again else self._factor * self._usual(budget)

    def ended(self, budget: float, coefficient: float) -> None:
        self._came_to[budget] = coefficient
        self._factor = coefficient / self._usual(budget)

    def _usual(self, budget: float) -> float:
        return _COEFFICIENT * (self.d_in / budget) ** _POWER


def _with_budget(cfg: Any, budget: float, n_steps: int, start: float | None) -> Any:
    """A config with a budget of bits, whose coefficient starts there, or with a k."""
    if start is not None:
        # The coefficient follows one target only.
        target = {"target_entropy": budget, "target_unexplained_variance": None}
        return replace(cfg, **target, entropy_coefficient=start)
    changes: dict[str, Any] = {"k": int(budget) if budget == int(budget) else budget}
    if isinstance(cfg, BatchTopKTrainingSAEConfig):
        # The threshold that inference goes by is a running mean, from zero on, which a short run would end far below.
        changes["topk_threshold_lr"] = min(max(cfg.topk_threshold_lr, 10 / n_steps), 1.0)
    return replace(cfg, **changes)


def _as_saved(sae: TrainingSAE[Any], device: str) -> SAE[Any]:
    """As who trains it gets it: bits the right way round, BatchTopK with its threshold."""
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder, device)


def _scored(sae: SAE[Any], budget: float, held_out: Tensor) -> BudgetPoint:
    code, explained_variance, _ = summarize_code(
        sae, held_out.split(4096), magnitude_bits=_MAGNITUDE_BITS
    )
    bits = code.description_length
    return BudgetPoint(
        budget=budget,
        bits=code.marginal_entropy if bits is None else bits,
        explained_variance=explained_variance,
        l0=code.l0,
        dense_share=code.dense_share_10,
        dead_share=code.dead_share,
    )


def _judged(
    point: BudgetPoint,
    sae: SAE[Any],
    model: Any,
    text: Any,
    settings: SweepSettings,
    judge: Judge,
) -> BudgetPoint:
    """The point with what the intruder test says of its latents."""
    own = IntruderSettings(n_latents=settings.n_judged, seed=settings.seed)
    records = collect_examples(
        model,
        sae,
        held_out_store(sae, model, text),
        ExampleSettings(n_tokens=settings.n_judged_tokens, n_neighbors=0, seed=settings.seed),
    )
    n_enough = len(_enough(TestedLatents(records), own))
    if n_enough == 0:
        return replace(point, n_enough=0)
    result = intruder_test(records, judge, own)
    return replace(
        point, n_enough=n_enough, n_tested=len(result.latents), n_passed=result.n_passed()
    )


def _enough(tested: TestedLatents, settings: IntruderSettings) -> Sequence[int]:
    return tested.with_texts(settings.n_shown - 1)
