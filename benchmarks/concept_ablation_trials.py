"""The cells of ``concept_ablation.py``: dictionaries, how each is trained, and what is done to it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from common import collect_pairs
from cross_layer_data import TASKS, Split, Trial
from cross_layer_data import Task as Hooks
from cross_layer_trials import clvq_config, initialization_rows, train
from sae_lens import SAE, TopKTrainingSAEConfig
from torch import Tensor

from bae_lens import (
    TrainingBAEConfig,
    TrainingCLVQVAE,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
)
from bae_lens import offline as demo
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.architectures.packed_rows import Packed
from bae_lens.concept_ablation import (
    AblationSettings,
    AblationTask,
    Clusters,
    LabeledTexts,
    ablate,
)
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.concepts import describe
from bae_lens.concept_ablation.interventions import ablate_passes, ablate_vectors
from bae_lens.concept_ablation.measure import concept_subspace
from bae_lens.concept_ablation.removals import Shrunk
from bae_lens.files.whole import whole_file, whole_folder
from bae_lens.training.fit import fit_activations

CLVQ = "CLVQ-VAE"
METHODS = (CLVQ, "VQ-VAE", "k-means", "TopK SAE", "TopK transcoder", "BAE")
TOPK, BITS = 32, 50.0
# CLVQ-VAE with one thing changed: what of it makes the difference (``--vary``).
VARIANTS: dict[str, dict[str, Any]] = {
    "32 codes": {"d_sae": 32},
    "128 codes": {"d_sae": 128},
    "2,048 codes": {"d_sae": 2048},
    "nearest code, no sampling": {"top_k": 1},
    "temperature 1": {"temperature": 1.0},
    "no EMA memory (γ = 0)": {"ema_decay": 0.0},
    "token decoder": {"decoder": "token"},
    "decoder sees z (release)": {"decoder_memory": "encoder"},
    "not centered": {},
}
UNCENTRED = "not centered"


@dataclass(frozen=True)
class Data:
    """A labeled dataset, and how a decoder is asked about it."""

    name: str
    title: str
    template: str
    label_words: tuple[str, ...]
    # Files in --data: what is scored, and what dictionaries are trained on.
    labeled: str = ""
    unlabeled: str = ""


DATASETS = {
    data.name: data
    for data in (
        Data(
            "eraser",
            "ERASER-Movie",
            "Review: {text}\nSentiment:",
            (" negative", " positive"),
            "eraser_movie_dev.jsonl",
            "eraser_movie_train_unlabelled.jsonl",
        ),
        Data(
            "jigsaw",
            "Jigsaw",
            "Comment: {text}\nIs the comment toxic? Answer:",
            (" No", " Yes"),
            "jigsaw_dev.jsonl",
            "jigsaw_train.jsonl",
        ),
        Data(
            "ag_news",
            "AG News",
            "Article: {text}\nTopic:",
            (" World", " Sports", " Business", " Technology"),
            "ag_news_test.jsonl",
            "ag_news_test.jsonl",
        ),
        Data(
            "movies",
            "IMDb and Rotten Tomatoes",
            "Review: {text}\nSentiment:",
            (" negative", " positive"),
        ),
    )
}
# The one file that is both is cut in two: scored texts come from the first so many.
N_SCORED_FILE = 2600


@dataclass(frozen=True)
class Plan:
    """What all cells have in common."""

    data: str | None
    datasets: tuple[str, ...]
    n_examples: int = 200
    n_train: int = 90_000
    length: int = 64
    n_steps: int = 16
    n_ordinary: int = 32
    n_reference: int = 400
    context_size: int = 64
    steps: int = 250
    n_codes: int = 512
    d_sae: int = 2048
    rank: int = 1
    seed: int = 0
    # Of the lower and the upper hook point, in place of the benchmark's.
    blocks: tuple[int, int] | None = None

    def hooks(self, model: str) -> Hooks:
        """The model with its hook points, and how autoencoders of two layers are trained."""
        hooks = TASKS[model]
        if self.blocks is not None:
            # Of the form blocks.10.hook_resid_post.
            at = hooks.hook_name.rpartition(".")[2]
            lower, upper = (f"blocks.{block}.{at}" for block in self.blocks)
            hooks = replace(hooks, hook_name=lower, hook_name_out=upper)
        return replace(
            hooks,
            n_codes=self.n_codes,
            d_sae=self.d_sae,
            steps=self.steps,
            length=self.length,
            n_initialization=min(32_768, self.n_train // 2),
        )

    def settings(self, model: str, data: Data) -> AblationSettings:
        """A decoder is asked; an encoder reads the text alone."""
        is_encoder = TASKS[model].is_encoder
        return AblationSettings(
            template=None if is_encoder else data.template,
            label_words=None if is_encoder else data.label_words,
            # Of models that classify nothing, as its tables say.
            predicted_by="probe",
            context_size=self.context_size,
            max_examples=self.n_examples,
            n_steps=self.n_steps,
            n_ordinary=self.n_ordinary,
            rank=self.rank,
            batch_size=20,
            seed=self.seed,
            exclude_outlier_tokens=False,
        )


def labeled_texts(plan: Plan, data: Data) -> LabeledTexts:
    """Texts that are scored."""
    if plan.data is None or not data.labeled:
        return LabeledTexts.read(demo.DATASET_NAME)
    rows = _json_lines(Path(plan.data) / data.labeled)
    return LabeledTexts.read(rows[:N_SCORED_FILE])


def unlabeled_texts(plan: Plan, data: Data) -> list[str]:
    """Texts of the same kind that dictionaries are trained on, none of which is scored."""
    if plan.data is None or not data.unlabeled:
        return demo.load_dataset(demo.DATASET_NAME)["text"]  # pyright: ignore[reportOptionalSubscript, reportReturnType]
    rows = _json_lines(Path(plan.data) / data.unlabeled)
    rows = rows[N_SCORED_FILE:] if data.unlabeled == data.labeled else rows
    scored = set(labeled_texts(plan, data).texts)
    return [row["text"] for row in rows if row["text"] not in scored]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Dictionaries


def load_model(model: str, device: str = "cpu") -> Any:
    hooks = TASKS[model]
    kind = "TransformerBridge" if hooks.is_encoder else "HookedTransformer"
    return demo.load_model(hooks.model_name, kind, device)


def collect(plan: Plan, model: str, folder: Path) -> None:
    """Activations of every dataset's unlabeled texts, equal shares, in a file."""
    path = folder / f"{model}.pt"
    if path.exists():
        return
    hooks, lm = plan.hooks(model), load_model(model)
    special = special_token_ids(lm, True)
    if hooks.is_encoder:
        # [CLS] is a token of its own, as in the other benchmark.
        special = [lm.tokenizer.sep_token_id, lm.tokenizer.pad_token_id]
    parts = []
    for name in plan.datasets:
        texts = unlabeled_texts(plan, DATASETS[name])
        # Texts of like length together, a few hundred at a time: less padding.
        windows = (sorted(texts[i : i + 512], key=len) for i in range(0, len(texts), 512))
        store = SentenceStore(
            lm,
            [text for window in windows for text in window],
            [hooks.hook_name, hooks.hook_name_out],
            context_size=plan.length,
            exclude_special_tokens=special,
        )
        n = plan.n_train // len(plan.datasets)
        parts.append(collect_pairs(store, n, plan.length, f"{model} {name}"))
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    with whole_file(path) as partial:
        torch.save(joined, partial)


@lru_cache(maxsize=1)
def _split(path: Path, d_in: int) -> Split:
    splits = torch.load(path, mmap=True)
    return Split(splits["tokens"], splits["rows"], d_in)


def dictionary_path(folder: Path, model: str, method: str, seed: int) -> Path:
    return folder / f"{model}-{re.sub('[^a-z0-9]+', '-', method.lower())}-{seed}"


def fit(plan: Plan, model: str, method: str, seed: int, folder: Path) -> None:
    """Train a dictionary and save it; what a worker process does."""
    torch.set_num_threads(1)
    path = dictionary_path(folder, model, method, seed)
    if path.exists():
        return
    torch.manual_seed(seed)
    hooks = plan.hooks(model)
    split = _split(folder / f"{model}.pt", hooks.d_in)
    if method == "k-means":
        lower = split.lower.contiguous()
        clusters = Clusters.fit(lower, plan.n_codes, hooks.hook_name, seed)
        with whole_folder(path) as partial:
            torch.save(clusters.centroids, partial / "centroids.pt")
        return
    sae = _train(plan, hooks, method, Trial(hooks, seed, split, split, None))
    sae.cfg.metadata.hook_name = hooks.hook_name
    if sae.cfg.architecture() in ("clvq_vae", "topk_transcoder") and method != "VQ-VAE":
        sae.cfg.metadata.hook_name_out = hooks.hook_name_out
    with whole_folder(path) as partial:
        sae.save_inference_model(partial)


def _train(plan: Plan, hooks: Hooks, method: str, trial: Trial) -> Any:
    d_in, lower = hooks.d_in, trial.train.lower
    if method == CLVQ or method in VARIANTS:
        options = {"decoder": "transformer"} | VARIANTS.get(method, {})
        kind = _Uncentered if method == UNCENTRED else TrainingCLVQVAE
        sae = kind(clvq_config(hooks, trial.seed, **options))
        sae.calibrate(initialization_rows(trial), hooks.batch_size)
        is_token = options["decoder"] == "token"
        train(trial, sae, hooks.lr_token if is_token else hooks.lr_transformer)
        return sae
    if method == "VQ-VAE":
        sae = TrainingCLVQVAE(clvq_config(hooks, trial.seed, decoder="token"))
        sae.calibrate(initialization_rows(trial)[:, :d_in], hooks.batch_size)
        train(trial, sae, hooks.lr_token, lower.contiguous())
        return sae
    if method == "TopK transcoder":
        sae = TrainingTopKTranscoder(
            TrainingTopKTranscoderConfig(d_in=d_in, d_sae=plan.d_sae, k=TOPK)
        )
        sae.calibrate(initialization_rows(trial))
        train(trial, sae, hooks.lr_topk)
        return sae
    cfg = (
        TopKTrainingSAEConfig(
            d_in=d_in, d_sae=plan.d_sae, k=TOPK, normalize_activations="expected_average_only_in"
        )
        if method == "TopK SAE"
        else TrainingBAEConfig(d_in=d_in, d_sae=plan.d_sae, target_entropy=BITS)
    )
    return fit_activations(cfg, lower, plan.steps, hooks.batch_size, seed=trial.seed)


class _Uncentered(TrainingCLVQVAE):
    """Inputs keep their mean: codes are told apart by it too, as in the release."""

    def fit_units(self, rows: Tensor) -> Packed:
        packed = super().fit_units(rows)
        self.input_mean.zero_()
        self.input_scale.copy_(self.cfg.d_in**0.5 / packed.lower.norm(dim=-1).mean())
        return packed


def load_dictionary(
    plan: Plan, folder: Path, model: str, method: str, seed: int
) -> SAE[Any] | Clusters:
    path = dictionary_path(folder, model, method, seed)
    if method == "k-means":
        return Clusters(torch.load(path / "centroids.pt"), plan.hooks(model).hook_name)
    return SAE.load_from_disk(path).eval()


# Ablations


def run_cell(
    plan: Plan,
    model: str,
    dataset: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    causal: bool,
    folder: Path,
) -> dict[str, Any]:
    """Every dictionary on one dataset and model; inside the forward pass, if at all, the first seed."""
    torch.set_num_threads(1)
    hooks, data = plan.hooks(model), DATASETS[dataset]
    task = AblationTask.prepare(
        load_model(model),
        (hooks.hook_name, hooks.hook_name_out),
        labeled_texts(plan, data),
        plan.settings(model, data),
        reference_texts=unlabeled_texts(plan, data)[: plan.n_reference],
        verbose=False,
    )
    results: dict[str, dict[str, Any]] = {}
    uncentered: dict[str, list[float | None]] = {}
    pairs: list[dict[str, Any]] = []
    for seed in seeds:
        dictionaries = {m: load_dictionary(plan, folder, model, m, seed) for m in methods}
        is_causal = causal and seed == seeds[0]
        for method, dictionary in dictionaries.items():
            found = ablate(task, dictionary, method, causal=is_causal)
            results[f"{method}/{seed}"] = found.to_dict()
            uncentered[f"{method}/{seed}"] = released_accuracies(task, dictionary)
        places = (*names.STORED, names.EVERYWHERE) if is_causal else names.STORED
        pairs += equal_norm_pairs(task, dictionaries, seed, places)
    return {"results": results, "uncentered": uncentered, "pairs": pairs}


def released_accuracies(task: AblationTask, dictionary: SAE[Any] | Clusters) -> list[float | None]:
    """At both hook points, of the same probes after the released projection, which centers nothing."""
    plain = replace(task, settings=replace(task.settings, center=False), measured={})
    plain.__dict__["salient"] = task.salient
    concepts = describe(dictionary, task.sample)
    found: list[float | None] = []
    for i in range(len(names.STORED)):
        own = concept_subspace(plain, concepts, i == 1)
        if own is None:
            found.append(None)
            continue
        vectors = ablate_vectors(plain, i, own).vectors
        found.append(plain.correct(vectors, plain.probes[i]).float().mean().item())
    return found


def equal_norm_pairs(
    task: AblationTask,
    dictionaries: dict[str, SAE[Any] | Clusters],
    seed: int,
    places: Sequence[str],
) -> list[dict[str, Any]]:
    """CLVQ-VAE against each other dictionary, each vector moved as far as the shorter would move it."""
    if CLVQ not in dictionaries:
        return []
    concepts = {m: describe(d, task.sample, name=m) for m, d in dictionaries.items()}
    found = []
    for place in places:
        at_upper = place == names.UPPER
        bases = {m: concept_subspace(task, c, at_upper) for m, c in concepts.items()}
        own = bases.pop(CLVQ)
        for method, other in bases.items():
            if own is None or other is None:
                continue
            pair: dict[str, Any] = {"place": place, "other": method, "seed": seed}
            for prefix, removal in (("", Shrunk(own, other)), ("other_", Shrunk(other, own))):
                if place in names.STORED:
                    outcome = ablate_vectors(task, int(at_upper), removal)
                else:
                    outcome = ablate_passes(task, place, removal, "At equal norm")
                probes = task.probes[0 if place == names.LOWER else 1]
                pair[prefix + "correct"] = _as_list(task.correct(outcome.vectors, probes))
                pair[prefix + "removed_norm"] = outcome.removed_norm
            found.append(pair)
    return found


def _as_list(correct: Tensor) -> list[bool]:
    return [bool(c) for c in correct]
