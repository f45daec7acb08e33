"""One training of ``feature_untangling.py``: its data, the SAE, and how it is scored."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from common import CONTEXT_SIZE, D_IN, collect, hook_name
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, ExplainedVarianceCalculator
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import (
    ActivationGenerator,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from untangling_peers import BATCHTOPK_FEEDBACK, BINARY

from bae_lens import offline as demo
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.architectures.code_kind import REAL_VALUED, CodeKind
from bae_lens.evals import CodeStatistics, MagnitudeQuantizer, run_evals
from bae_lens.evals.magnitudes import magnitude_entropy
from bae_lens.files.whole import whole_file
from bae_lens.training.fit import trainer_config

# What the BAEs of levels are, and all that a user sets; everything else of all BAEs is the default recipe.
N_LEVELS, FEEDBACK_STEPS = 7, 2
LEVELED: dict[str, Any] = {"n_levels": N_LEVELS}
FED_BACK: dict[str, Any] = LEVELED | {"feedback_steps": FEEDBACK_STEPS}
# Without the penalty on latents denser than the 10 % that are counted, since peers have no such penalty.
NO_CAP: dict[str, Any] = {"max_density": None}
RECIPES: dict[str, dict[str, Any]] = {
    "bae": {},
    "bae_no_cap": NO_CAP,
    "bae_levels": LEVELED,
    "bae_levels_no_cap": LEVELED | NO_CAP,
    "bae_levels_feedback": FED_BACK,
    "bae_levels_feedback_no_cap": FED_BACK | NO_CAP,
}
NAMES = {
    "bae": "BAE",
    "bae_no_cap": "BAE, no cap",
    "bae_levels": "BAE, levels",
    "bae_levels_no_cap": "BAE, levels, no cap",
    "bae_levels_feedback": "BAE, levels and feedback",
    "bae_levels_feedback_no_cap": "BAE, levels and feedback, no cap",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka_batchtopk": "Matryoshka",
    "jumprelu": "JumpReLU",
    BINARY: "Binary sparse coding",
    "gated": "Gated",
    "standard": "Standard",
    BATCHTOPK_FEEDBACK: "BatchTopK, feedback",
}
OURS = tuple(RECIPES)
# Tells what is the encoder's and what the code's. SAELens has no such architecture: it is no peer.
CONTROLS = (BATCHTOPK_FEEDBACK,)
PEERS = tuple(arch for arch in NAMES if arch not in (*OURS, *CONTROLS))
# Which coefficient sets the sparsity of those that have no k.
COEFFICIENTS = {"jumprelu": "l0", "gated": "l1", "standard": "l1"}
# Widths of the nested dictionaries, as shares of d_sae.
MATRYOSHKA = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)
LEVELS = LOW, MIDDLE, HIGH = (0, 1, 2)
# Latents of a language model's SAE per dimension.
WIDTH = 2
RESOLUTIONS = (0, 1, 2, 3, 4, 6, 8)
BATCH, EVAL_BATCH = 512, 4096
# Test tokens whose errors are kept together, for intervals.
BLOCK = 256


@dataclass(frozen=True)
class Task:
    """One set of activations, and how everything is trained and scored on it."""

    name: str
    title: str
    d_in: int
    d_sae: int
    steps: int
    l0s: tuple[float, ...]
    entropies: tuple[float, ...]
    n_train: int
    n_test: int
    layer: int | None = None
    heavy: bool = False
    ce_batches: int = 1
    n_validation: int = 16_384
    n_quantized: int = 16_384

    @property
    def filename(self) -> str:
        # Synthetic data have as many features as d_sae says; a language model's are of any width.
        source = f"lm-{self.layer}" if self.layer is not None else f"{self.name}-{self.d_sae}"
        sizes = (self.d_in, self.n_train, self.n_validation, self.n_test)
        return f"{source}-{'-'.join(map(str, sizes))}.pt"


@dataclass(frozen=True)
class Trial:
    """One training."""

    task: str
    arch: str
    level: int
    lr: float
    seed: int

    @property
    def key(self) -> str:
        return f"{self.task}/{self.arch}/{self.level}/{self.lr:g}/{self.seed}"


@dataclass
class Row:
    """One training, scored.

    Attributes:
        points: resolution of the magnitudes, bits per token, EV after it; of a code whose latents have
            one or several known values one point, without a resolution.
        unexplained: for each point, of blocks of ``BLOCK`` test tokens, the squared error over the mean
            block's variance, so that their mean is 1 - EV.
        recipe: of the training, see ``recipe_of``.
    """

    trial: Trial
    validation_ev: float
    explained_variance: float
    code: dict[str, Any]
    points: list[tuple[float | None, float, float]]
    unexplained: list[list[float]] = field(default_factory=list)
    ce: dict[str, float] = field(default_factory=dict)
    truth: dict[str, float] = field(default_factory=dict)
    recipe: str = ""
    seconds: float = 0.0
    training_seconds: float = 0.0


# Activations


def lm_task(layer: int, width: int = WIDTH, **overrides: Any) -> Task:
    """Args: ``width`` is d_sae over d_in."""
    is_default = width == WIDTH
    return replace(
        Task(
            name=f"lm-{layer}" + ("" if is_default else f"-x{width}"),
            title=f"SmolLM2-135M after block {layer}" + ("" if is_default else f", width x{width}"),
            d_in=D_IN,
            d_sae=width * D_IN,
            steps=800,
            l0s=(16, 48, 128),
            entropies=(150, 300, 576),
            n_train=200_000,
            n_test=65_536,
            layer=layer,
        ),
        **overrides,
    )


def synthetic_task(heavy: bool, **overrides: Any) -> Task:
    return replace(
        Task(
            name="synth-heavy" if heavy else "synth",
            title="Synthetic, heavy-tailed" if heavy else "Synthetic",
            d_in=128,
            d_sae=512,
            steps=1500,
            # The sparsest is below the bits of the sparsest BAE.
            l0s=(4, 10, 20),
            entropies=(40, 80, 160),
            n_train=400_000,
            n_test=65_536,
            heavy=heavy,
        ),
        **overrides,
    )


@lru_cache(maxsize=2)
def synthetic_model(task: Task) -> SyntheticModel:
    """SynthSAEBench's recipe: twice as many features as latents, eight times as many as dimensions."""
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=2 * task.d_sae,
            hidden_dim=task.d_in,
            firing_probability=ZipfianFiringProbabilityConfig(0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=HierarchyConfig(total_root_nodes=256, branching_factor=4, max_depth=3),
            orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
            mean_firing_magnitudes=LinearMagnitudeConfig(5.0, 4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(0.5, 0.5),
            seed=42,
        )
    )
    if task.heavy:
        generator: Any = model.activation_generator
        gate = generator.modify_activations

        def stretch(acts: Tensor, source: ActivationGenerator) -> Tensor:
            return gate(acts, source) * torch.empty_like(acts).exponential_()

        generator.modify_activations = stretch
    return model


def prepare(tasks: Sequence[Task], folder: Path, device: str) -> None:
    """Write the activations of all tasks, unless the folder has them."""
    # Tasks of other widths share the activations.
    by_file = {task.filename: task for task in tasks if not (folder / task.filename).exists()}
    missing = list(by_file.values())
    if layers := list(dict.fromkeys(task.layer for task in missing if task.layer is not None)):
        first = next(task for task in missing if task.layer is not None)
        n_train = first.n_train + first.n_validation
        seen = collect(layers, "train", n_train, device)
        held_out = collect(layers, "test", first.n_test, device)
        for task in missing:
            if task.layer is not None:
                save(task, folder, torch.cat([seen[task.layer], held_out[task.layer]]))
    for task in missing:
        if task.layer is None:
            torch.manual_seed(1)
            model = synthetic_model(task)
            n = task.n_train + task.n_validation + task.n_test
            sizes = [min(EVAL_BATCH, n - i) for i in range(0, n, EVAL_BATCH)]
            save(task, folder, torch.cat([model.sample(size) for size in sizes]))


def save(task: Task, folder: Path, acts: Tensor) -> None:
    """Activations in the order: training, validation, test; those scored are shuffled."""
    generator = torch.Generator().manual_seed(0)
    parts = acts.split([task.n_train, task.n_validation, task.n_test])
    splits = dict(zip(("train", "validation", "test"), parts, strict=True))
    for name in ("validation", "test"):
        splits[name] = splits[name][torch.randperm(len(splits[name]), generator=generator)]
    with whole_file(folder / task.filename) as partial:
        torch.save({name: part.clone() for name, part in splits.items()}, partial)


@lru_cache(maxsize=1)
def load(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """A process keeps those of its last task, on a GPU as well."""
    splits: dict[str, Tensor] = torch.load(path, mmap=True)
    return splits if device == "cpu" else {name: part.to(device) for name, part in splits.items()}


# Training


class L0Budget:
    """Batches for a trainer whose sparsity coefficient follows an L0, as BAE's follows its entropy.

    All of it is arithmetic on the trainer's device, which a GPU need not be waited for.
    """

    def __init__(
        self, batches: Iterator[Tensor], trainer: SAETrainer[Any, Any], name: str, target: float
    ) -> None:
        self.batches, self.trainer, self.target = batches, trainer, target
        self.scheduler: Any = trainer.coefficient_schedulers[name]
        self.n_fired: Tensor | float = 0.0

    def __iter__(self) -> L0Budget:
        return self

    def __next__(self) -> Tensor:
        if self.trainer.n_training_steps > 0:
            n_fired = self.trainer.act_freq_scores.sum(dtype=torch.float64)
            l0 = (n_fired - self.n_fired) / self.trainer.cfg.train_batch_size_samples
            self.n_fired = n_fired
            off_by = (3 * (l0 / self.target - 1)).clamp(-1.0, 1.0)
            # Not in place: the coefficient of this step is the same tensor.
            self.scheduler.final_value = self.scheduler.final_value * (0.02 * off_by).exp()
        return next(self.batches)


def architecture(trial: Trial) -> str:
    """SAELens' name."""
    return "bae" if trial.arch in OURS else trial.arch


def make_config(trial: Trial, task: Task, device: str) -> Any:
    k, entropy = task.l0s[trial.level], task.entropies[trial.level]
    ours: dict[str, Any] = {"target_entropy": entropy}
    options: dict[str, Any] = {
        **{arch: ours | recipe for arch, recipe in RECIPES.items()},
        # SAELens' defaults leave the encoder out of the sparsity loss and start at a coefficient that
        # silences 99 % of latents; in a few hundred steps neither comes to an L0 of this size. These
        # are what its documentation calls Anthropic's setup.
        "jumprelu": {
            "jumprelu_sparsity_loss_mode": "tanh",
            "jumprelu_ste_to_input": True,
            "pre_act_loss_coefficient": 3e-6,
            "l0_coefficient": 0.1,
        },
        "topk": {"k": int(k)},
        BINARY: {"k": int(k)},
        "batchtopk": {"k": float(k)},
        BATCHTOPK_FEEDBACK: {"k": float(k), "feedback_steps": FEEDBACK_STEPS},
        "matryoshka_batchtopk": {
            "k": float(k),
            "matryoshka_widths": [round(share * task.d_sae) for share in MATRYOSHKA],
        },
    }
    return get_sae_training_class(architecture(trial))[1](
        d_in=task.d_in,
        d_sae=task.d_sae,
        device=device,
        normalize_activations="expected_average_only_in",
        **options.get(trial.arch, {}),
    )


def recipe_of(trial: Trial, task: Task) -> str:
    """Short hash of the config of a training, by which one is known that was of another recipe."""
    cfg = make_config(trial, task, "cpu").to_dict()
    cfg.pop("metadata", None)
    said = json.dumps(cfg, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def metadata(task: Task) -> dict[str, Any]:
    """Where an SAE belongs, for what is done with it on the language model; nothing of synthetic data."""
    if task.layer is None:
        return {}
    return {
        "model_name": demo.MODEL_NAME,
        "model_class_name": "HookedTransformer",
        "hook_name": hook_name(task.layer),
        "dataset_path": demo.DATASET_NAME,
        "context_size": CONTEXT_SIZE,
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "disable_concat_sequences": True,
    }


def train(trial: Trial, task: Task, acts: Tensor, device: str) -> SAE[Any]:
    """Train, save and load again: the SAE that a user would get."""
    torch.manual_seed(trial.seed)
    cfg = make_config(trial, task, device)
    vars(cfg.metadata).update(metadata(task))
    sae = get_sae_training_class(architecture(trial))[0](cfg)
    batches = ReplayedActivations(acts, BATCH, seed=trial.seed)
    config = trainer_config(task.steps, BATCH, trial.lr, device)
    trainer: SAETrainer[Any, Any] = SAETrainer(config, sae, batches)
    if trial.arch in COEFFICIENTS:
        name = COEFFICIENTS[trial.arch]
        trainer.data_provider = L0Budget(batches, trainer, name, task.l0s[trial.level])
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder, device=device).eval()


# Scoring


@torch.no_grad()
def explained_variance(sae: SAE[Any], acts: Tensor) -> float:
    calculator = ExplainedVarianceCalculator()
    for batch in acts.split(EVAL_BATCH):
        batch = batch.to(sae.device)
        calculator.add_batch(sae_output=sae.decode(sae.encode(batch)), hidden_acts=batch)
    return calculator.compute()


class BlockedVariance(ExplainedVarianceCalculator):
    """Explained variance that keeps the errors of each ``BLOCK`` tokens as well."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Tensor] = []

    def add_batch(self, sae_output: Tensor, hidden_acts: Tensor) -> None:
        super().add_batch(sae_output=sae_output, hidden_acts=hidden_acts)
        self.errors.append((hidden_acts - sae_output).double().square().sum(-1).cpu())

    def unexplained(self) -> list[float]:
        """Of each block over the mean block's variance, so that their mean is 1 - EV."""
        blocks = torch.stack([block.sum() for block in torch.cat(self.errors).split(BLOCK)])
        shares = blocks / blocks.mean() * (1 - self.compute())
        return [float(f"{share:.5g}") for share in shares.tolist()]


@torch.no_grad()
def score_code(trial: Trial, task: Task, sae: SAE[Any], splits: dict[str, Tensor]) -> Row:
    """Code, explained variance and rate–distortion points on the test split."""
    is_real_valued = code_kind(sae).is_real_valued
    quantizers: list[MagnitudeQuantizer] = []
    if is_real_valued:
        validation = splits["validation"].to(sae.device)
        fitted_on = torch.cat([sae.encode(batch) for batch in validation.split(EVAL_BATCH)])
        quantizers = [MagnitudeQuantizer.fit(fitted_on, sae.W_dec, bits) for bits in RESOLUTIONS]
        del fitted_on
    cells = [torch.zeros_like(q.restored, dtype=torch.int64) for q in quantizers]
    code = CodeStatistics(
        sae.cfg.d_sae,
        pair_counts=True,
        flipped=getattr(sae, "flipped", None),
        level_values=None if is_real_valued else level_values(sae),
    )
    plain, first = ExplainedVarianceCalculator(), BlockedVariance()
    quantized = [BlockedVariance() for _ in quantizers]
    for batch in splits["test"].split(EVAL_BATCH):
        batch = batch.to(sae.device)
        is_first = code.n_tokens < task.n_quantized
        acts = sae.encode(batch)
        code.update(acts)
        for calculator in (plain, first) if is_first else (plain,):
            calculator.add_batch(sae_output=sae.decode(acts), hidden_acts=batch)
        for quantizer, cell, calculator in zip(quantizers, cells, quantized, strict=True):
            cell += quantizer.count(acts)
            if is_first:
                restored = sae.decode(quantizer.quantize(acts))
                calculator.add_batch(sae_output=restored, hidden_acts=batch)
    summary = code.compute(sae.W_dec)
    points: list[tuple[float | None, float, float]]
    if is_real_valued:
        support = summary.support_entropy
        points = [
            (bits, support + magnitude_entropy(cell, summary.n_tokens), calculator.compute())
            for bits, cell, calculator in zip(RESOLUTIONS, cells, quantized, strict=True)
        ]
    else:
        # Which latents fire, and at which of their values: exact, at no resolution.
        assert summary.description_length is not None
        points = [(None, summary.description_length, first.compute())]
    return Row(
        trial=trial,
        validation_ev=explained_variance(sae, splits["validation"]),
        explained_variance=plain.compute(),
        code=summary.to_dict(),
        points=points,
        unexplained=[calculator.unexplained() for calculator in quantized or [first]],
    )


def code_kind(sae: SAE[Any]) -> CodeKind:
    return getattr(sae, "code_kind", REAL_VALUED)


def level_values(sae: Any) -> Tensor:
    """What each latent is worth where it fires, ``[d_sae, L]``."""
    if sae.cfg.architecture() == BINARY:
        return sae.scale.detach().expand(sae.cfg.d_sae, 1).contiguous()
    return sae.level_values.detach()


@lru_cache(maxsize=1)
def language_model(device: str) -> Any:
    return demo.load_model(demo.MODEL_NAME, device=device)


def recovered_loss(sae: SAE[Any], n_batches: int, device: str) -> dict[str, float]:
    model = language_model(device)
    store: ActivationsStore = held_out_store(sae, model)
    config = EvalConfig(
        batch_size_prompts=8, n_eval_reconstruction_batches=n_batches, compute_ce_loss=True
    )
    metrics, _ = run_evals(
        sae, store, model, eval_config=config, n_code_tokens=0, exclude_outlier_tokens=False
    )
    scores = metrics["model_performance_preservation"]
    return {"zero": scores["ce_loss_score"], "mean": scores["ce_loss_score_mean_ablation"]}


def recovered_features(task: Task, sae: SAE[Any]) -> dict[str, float]:
    model = synthetic_model(task)
    torch.manual_seed(2)
    result = eval_sae_on_synthetic_data(
        sae.cpu(), model.feature_dict, model.activation_generator, 16_384, EVAL_BATCH
    )
    scores = {"mcc": result.mcc, "uniqueness": result.uniqueness, "true_l0": result.true_l0}
    return scores | {
        name: getattr(result.classification, name) for name in ("f1_score", "precision", "recall")
    }


def run_trial(trial: Trial, task: Task, folder: Path, device: str, score_ce: bool) -> Row:
    """Train and score; what a worker process does."""
    torch.set_num_threads(1)
    start = time.time()
    splits = load(folder / task.filename, device)
    sae = train(trial, task, splits["train"], device)
    trained = time.time()
    row = score_code(trial, task, sae, splits)
    if task.layer is None:
        row.truth = recovered_features(task, sae)
    elif score_ce:
        row.ce = recovered_loss(sae, task.ce_batches, device)
    row.recipe = recipe_of(trial, task)
    row.training_seconds, row.seconds = trained - start, time.time() - start
    return row
