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
from concept_ablation_trials import (
    DATASETS,
    Plan,
    labeled_texts,
    load_dictionary,
    load_model,
    unlabeled_texts,
)
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from untangling_trials import Task, Trial, explained_variance, load, metadata, train

from bae_lens.concept_ablation import AblationTask, Clusters
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.examples import ExampleSettings, collect_examples
from bae_lens.files.whole import whole_file, whole_folder
from bae_lens.scoring import IntruderSettings, ModelEncoder, intruder_test
from bae_lens.scoring.recoverability import RecoverabilityTask
from bae_lens.scoring.recoverability_result import RecoverabilitySettings

MODEL = "smollm2"
# Bits of a BAE and L0 of the others, each half of the next, but for L0 48 and 300 bits, the middle of
# feature_untangling.py: from where few of a BAE's bits are heard to where peers lose most of their latents.
ENTROPIES = (18.75, 37.5, 75, 150, 300)
L0S = (2, 4, 8, 16, 48)
RANDOM, TOKENS = "random directions", "random tokens"
ARCHITECTURES = ("bae", "bae_no_cap", "topk", "batchtopk", "jumprelu")
# Those of latents are there for comparison, with the first seed.
PEERS = ("TopK SAE", "BAE")
CODES = ("CLVQ-VAE", "VQ-VAE", "k-means", TOKENS, *PEERS)


@dataclass(frozen=True)
class Listening:
    """How latents are read and tested."""

    n_latents: int = 200
    n_tokens: int = 40_000
    n_trials: int = 20

    def test(self, seed: int = 0) -> IntruderSettings:
        return IntruderSettings(n_latents=self.n_latents, n_trials=self.n_trials, seed=seed)


@lru_cache(maxsize=1)
def encoder() -> ModelEncoder:
    return ModelEncoder.minilm()


@lru_cache(maxsize=1)
def remembering_model(folder: Path) -> Any:
    """The language model, which reads each batch of the corpus once: all dictionaries are shown the same
    text, and what stands at a hook point is kept in files."""
    model = load_model(MODEL)
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
        return None, torch.load(path)

    model.run_with_cache = run_with_cache
    return model


def validate(trial: Trial, task: Task, folder: Path) -> dict[str, Any]:
    """One training, for the choice of its learning rate; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename)
    sae = trained(trial, task, splits["train"], folder)
    return {"validation_ev": explained_variance(sae, splits["validation"])}


def listen(trial: Trial, task: Task, folder: Path, listening: Listening) -> dict[str, Any]:
    """One training and its intruder test; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename)
    if trial.arch == RANDOM:
        sae = random_directions(trial, task, splits["train"])
    else:
        sae = trained(trial, task, splits["train"], folder)
    # The same text for all, from a split that nothing was trained on.
    settings = ExampleSettings(
        n_tokens=listening.n_tokens, n_random=20, n_strongest=1, n_neighbors=0, n_top_tokens=0
    )
    model = remembering_model(folder / "seen")
    records = collect_examples(model, sae, None, settings, exclude_outlier_tokens=False)
    result = intruder_test(records, None, listening.test(), encoder=encoder())
    code = CodeStatistics(sae.cfg.d_sae, pair_counts=True, flipped=getattr(sae, "flipped", None))
    with torch.no_grad():
        for batch in splits["test"].split(4096):
            code.update(sae.encode(batch))
    summary = code.compute(sae.W_dec)
    return {
        "explained_variance": None
        if trial.arch == RANDOM
        else explained_variance(sae, splits["test"]),
        "l0": summary.l0,
        "bits": summary.support_entropy,
        "result": result.to_dict(),
    }


def trained(trial: Trial, task: Task, acts: torch.Tensor, folder: Path) -> SAE[Any]:
    """From the cache if it is there."""
    path = folder / f"{trial.key.replace('/', '-')}-{task.d_sae}-{task.steps}"
    if not path.exists():
        sae = train(trial, task, acts, "cpu")
        with whole_folder(path) as partial:
            sae.save_model(partial)
    return SAE.load_from_disk(path).eval()


def random_directions(trial: Trial, task: Task, acts: torch.Tensor) -> TopKSAE:
    """TopK of as many latents as its peers have on, along random directions from the mean."""
    cfg = TopKSAEConfig(d_in=task.d_in, d_sae=task.d_sae, k=int(task.l0s[trial.level]))
    vars(cfg.metadata).update(metadata(task))
    sae = TopKSAE(cfg)
    generator = torch.Generator().manual_seed(trial.seed)
    directions = torch.randn(task.d_sae, task.d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    with torch.no_grad():
        sae.b_dec.copy_(acts.mean(0))
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
        for method in methods if seed == seeds[0] else [m for m in methods if m not in PEERS]:
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
