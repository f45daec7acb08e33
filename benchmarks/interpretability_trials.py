"""The cells of ``interpretability.py``: dictionaries, what is seen of them, and how it is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import untangling_trials
from concept_ablation_trials import (
    DATASETS,
    Plan,
    labeled_texts,
    load_dictionary,
    load_model,
    unlabeled_texts,
)
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from untangling_peers import BINARY
from untangling_trials import (
    CONTROLS,
    EVAL_BATCH,
    OURS,
    Task,
    Trial,
    explained_variance,
    load,
    metadata,
    train,
)

from bae_lens.concept_ablation import AblationTask, Clusters
from bae_lens.dictionaries import Dictionary
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from bae_lens.files.whole import whole_file, whole_folder
from bae_lens.scoring import IntruderResult, IntruderSettings, ModelEncoder, intruder_test
from bae_lens.scoring.recoverability import RecoverabilityTask
from bae_lens.scoring.recoverability_result import RecoverabilitySettings
from bae_lens.scoring.tested_latents import TestedLatents

MODEL = "smollm2"
# Bits of a BAE and L0 of the others, each half of the next, but for L0 48 and 300 bits, the middle of
# feature_untangling.py: from where few of a BAE's bits are heard to where peers lose most of their latents.
ENTROPIES = (18.75, 37.5, 75, 150, 300)
L0S = (2, 4, 8, 16, 48)
# Levels of the target: 38, 75 and 150 bits.
TARGETED = (1, 2, 3)
RANDOM, TOKENS = "random directions", "random tokens"
NO_CAP = "_no_cap"
PEERS = ("topk", "batchtopk", "jumprelu", BINARY)
ARCHITECTURES = (*OURS, *PEERS, *CONTROLS)
# Among the dictionaries of codes those of latents, with the first seed.
COMPARED = ("TopK SAE", "BAE")
CODES = ("CLVQ-VAE", "VQ-VAE", "k-means", TOKENS, *COMPARED)


@dataclass(frozen=True)
class Listening:
    """How latents are read and tested."""

    n_latents: int = 200
    n_tokens: int = 40_000
    n_trials: int = 20

    def test(self, seed: int = 0) -> IntruderSettings:
        return IntruderSettings(n_latents=self.n_latents, n_trials=self.n_trials, seed=seed)

    def examples(self) -> ExampleSettings:
        return ExampleSettings(
            n_tokens=self.n_tokens, n_random=20, n_strongest=1, n_neighbors=0, n_top_tokens=0
        )


@lru_cache(maxsize=1)
def encoder(device: str = "cpu") -> ModelEncoder:
    return ModelEncoder.minilm(device)


@lru_cache(maxsize=1)
def remembering_model(folder: Path, device: str = "cpu") -> Any:
    """The language model, which reads each batch of the corpus once: all dictionaries are shown the same
    text, and what stands at a hook point is kept in files."""
    model = load_model(MODEL, device)
    read = model.run_with_cache
    folder.mkdir(exist_ok=True)

    def run_with_cache(tokens: torch.Tensor, **options: Any) -> Any:
        mask = options.get("attention_mask")
        asked = [str(options["names_filter"]), tokens.tolist(), mask is not None and mask.tolist()]
        path = folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.pt"
        if not path.exists():
            _, cache = read(tokens, **options)
            with whole_file(path) as partial:
                torch.save({name: cache[name].clone() for name in options["names_filter"]}, partial)
        return None, torch.load(path, map_location=device)

    model.run_with_cache = run_with_cache
    return model


def read_corpus(trial: Trial, task: Task, folder: Path, listening: Listening, device: str) -> None:
    """The text that all dictionaries are shown, so that workers need not read it side by side."""
    torch.set_num_threads(1)
    collect(random_directions(trial, task, folder, device), folder, listening, device)


def validate(trial: Trial, task: Task, folder: Path, device: str) -> dict[str, Any]:
    """One training, for the choice of its learning rate; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename, device)
    sae = trained(trial, task, splits["train"], folder, device)
    ev = explained_variance(sae, splits["validation"])
    return {"validation_ev": ev, "recipe": recipe_of(trial, task)}


def listen(
    trial: Trial, task: Task, folder: Path, listening: Listening, device: str
) -> dict[str, Any]:
    """One training and its intruder test; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename, device)
    if trial.arch == RANDOM:
        sae = random_directions(trial, task, folder, device)
    else:
        sae = trained(trial, task, splits["train"], folder, device)
    records = collect(sae, folder, listening, device)
    result = told_apart(records, listening.test(), device)
    asked = Dictionary(sae)
    code = CodeStatistics(
        sae.cfg.d_sae, True, flipped=asked.flipped, level_values=asked.level_values
    )
    with torch.no_grad():
        for batch in splits["test"].split(EVAL_BATCH):
            code.update(sae.encode(batch.to(device)))
    summary = code.compute(sae.W_dec)
    return {
        "explained_variance": None
        if trial.arch == RANDOM
        else explained_variance(sae, splits["test"]),
        "l0": summary.l0,
        # Of levels theirs too, which the budget is of; of real numbers without their magnitudes.
        "bits": summary.support_entropy + (summary.magnitude_entropy or 0.0),
        "result": result.to_dict(),
        # How often each tested latent fires in the text that it is tested on.
        "rates": [records[latent.latent].rate for latent in result.latents],
        "recipe": recipe_of(trial, task),
    }


def collect(sae: SAE[Any], folder: Path, listening: Listening, device: str) -> LatentRecords:
    """What is seen of an SAE in the same text for all, from a split that nothing was trained on."""
    model = remembering_model(folder / "seen", device)
    return collect_examples(model, sae, None, listening.examples(), exclude_outlier_tokens=False)


def told_apart(records: LatentRecords, settings: IntruderSettings, device: str) -> IntruderResult:
    """The intruder test, in which a dictionary that nobody could be asked about has no latents."""
    if TestedLatents(records).with_texts(settings.n_shown - 1):
        return intruder_test(records, None, settings, encoder=encoder(device))
    return IntruderResult(
        dictionary=records.dictionary,
        hook_name=records.hook_name,
        judge="nobody",
        caveat="",
        settings=settings,
        n_latents=len(records),
        n_firing=TestedLatents(records).n_firing,
        n_enough=0,
        latents=(),
        control=(),
    )


def recipe_of(trial: Trial, task: Task) -> str:
    """By which a training of another recipe is known; random directions have none."""
    return "" if trial.arch == RANDOM else untangling_trials.recipe_of(trial, task)


def trained(trial: Trial, task: Task, acts: torch.Tensor, folder: Path, device: str) -> SAE[Any]:
    """From the cache if it is there."""
    own = (trial.key.replace("/", "-"), task.d_sae, task.steps, recipe_of(trial, task))
    path = folder / "-".join(map(str, own))
    if not path.exists():
        sae = train(trial, task, acts, device)
        with whole_folder(path) as partial:
            sae.save_model(partial)
    return SAE.load_from_disk(path, device=device).eval()


def random_directions(trial: Trial, task: Task, folder: Path, device: str) -> TopKSAE:
    """TopK of as many latents as its peers have on, along random directions from the mean."""
    k = int(task.l0s[trial.level])
    cfg = TopKSAEConfig(d_in=task.d_in, d_sae=task.d_sae, k=k, device=device)
    vars(cfg.metadata).update(metadata(task))
    sae = TopKSAE(cfg)
    generator = torch.Generator().manual_seed(trial.seed)
    directions = torch.randn(task.d_sae, task.d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        sae.b_dec.copy_(load(folder / task.filename, device)["train"].mean(0))
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    return sae.eval()


def recover_cell(
    plan: Plan,
    dataset: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    n_texts_read: int,
) -> dict[str, Any]:
    """Every dictionary on one dataset; what a worker process does."""
    torch.set_num_threads(1)
    hooks, data = plan.hooks(MODEL), DATASETS[dataset]
    read = unlabeled_texts(plan, data)[:n_texts_read]
    settings = replace(plan.settings(MODEL, data), causal=False, label_words=None)
    texts = AblationTask.prepare(
        remembering_model(folder / "seen"),
        (hooks.hook_name, hooks.hook_name_out),
        labeled_texts(plan, data),
        settings,
        reference_texts=read[: plan.n_reference],
        verbose=False,
    )
    task = RecoverabilityTask.of(texts, read, RecoverabilitySettings(seed=plan.seed))
    n_contexts = task.settings.n_contexts
    seen = ExampleSettings(
        n_tokens=None, n_strongest=1, n_random=4 * n_contexts, n_top_tokens=20, n_neighbors=0
    )
    recoverabilities: dict[str, Any] = {}
    intruders: dict[str, Any] = {}
    for seed in seeds:
        for method in methods if seed == seeds[0] else [m for m in methods if m not in COMPARED]:
            if method == TOKENS:
                dictionary = random_tokens(plan, folder, seed)
            else:
                dictionary = load_dictionary(plan, folder, MODEL, method, seed)
            records = task.collect(dictionary, seen)
            key = f"{method}/{seed}"
            recoverabilities[key] = task.recover(dictionary, records, method).to_dict()
            test = IntruderSettings(n_latents=100)
            intruders[key] = intruder_test(records, None, test, encoder=encoder()).to_dict()
    return {"recoverabilities": recoverabilities, "intruders": intruders}


def random_tokens(plan: Plan, folder: Path, seed: int) -> Clusters:
    """As many centroids as there are codes, each the activation of a token drawn at random."""
    hooks = plan.hooks(MODEL)
    rows = torch.load(folder / f"{MODEL}.pt", mmap=True)["rows"]
    valid = (rows[:, -1] > 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    chosen = valid[torch.randperm(len(valid), generator=generator)[: plan.n_codes]]
    return Clusters(rows[chosen][:, : hooks.d_in].clone(), hooks.hook_name, TOKENS)
