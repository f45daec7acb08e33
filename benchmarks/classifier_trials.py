"""What ``classifier.py`` measures: classifiers of its own, their activations, dictionaries, ablations."""

from __future__ import annotations

import json
import random
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from cross_layer_trials import group_means
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from torch import Tensor

from bae_lens import (
    CLVQVAE,
    TrainingBAEConfig,
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
)
from bae_lens import offline as demo
from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.special_tokens import special_token_ids, special_token_mask
from bae_lens.activations.text_batch import TextBatch
from bae_lens.architectures.packed_rows import pack_rows
from bae_lens.concept_ablation import AblationSettings, AblationTask, Clusters
from bae_lens.concept_ablation.concepts import TokenSample, describe
from bae_lens.concept_ablation.interventions import ablate_passes, ablate_vectors
from bae_lens.concept_ablation.measure import _Measure, concept_subspace
from bae_lens.concept_ablation.predictors import own_logits
from bae_lens.concept_ablation.removals import EqualNorm, Removal, Subspace
from bae_lens.concept_ablation.result import EVERYWHERE, LEACE, STORED
from bae_lens.concept_ablation.texts import encode_texts
from bae_lens.files.whole import whole_file, whole_folder, write_text
from bae_lens.finetuning import FinetuningSettings, finetune_classifier
from bae_lens.loading.language_models import load_model
from bae_lens.scoring.nmi import prediction_nmi, prediction_nmi_difference
from bae_lens.stats import paired_bootstrap
from bae_lens.training.fit import fit_activations, trainer_config

TITLES = {"ag_news": "AG News", "jigsaw": "Jigsaw", "movie": "Movie"}
DATASETS = tuple(TITLES)
PAIRS = ((1, 4), (3, 5))
BLOCKS = tuple(sorted({block for pair in PAIRS for block in pair}))
TEXTS_AT_ONCE, TOKENS_AT_ONCE = 32, 8192

PREDICTIVE, PAPER = "CLVQ-VAE, predictive", "CLVQ-VAE, paper's encoder"
VQ, KMEANS, WARD = "VQ-VAE, lower layer alone", "k-means", "Ward clusters"
RIDGE, MLP = "ridge + k-means", "MLP + k-means"
CEILING, RANDOM = "k-means at the higher layer", "random tokens"
TOPK, TRANSCODER, BAE = "TopK SAE", "TopK transcoder", "BAE"
DIRECTION = "random direction"
OURS = (PREDICTIVE, PAPER)
# Unsupervised ones of one layer.
BASELINES = (KMEANS, VQ, WARD, RANDOM)
METHODS = (*OURS, RIDGE, MLP, *BASELINES, TOPK, TRANSCODER, BAE, CEILING)
ABLATED = (*OURS, RIDGE, KMEANS, VQ, RANDOM, TOPK)
LEARNING_RATES = {PREDICTIVE: 2e-3, PAPER: 5e-3, VQ: 4e-3, TRANSCODER: 3e-3, TOPK: 3e-3, BAE: 2e-3}


@dataclass(frozen=True)
class Prompt:
    """How a model is read: where, and what a decoder is asked around a text."""

    blocks: tuple[int, ...] = BLOCKS
    at: str = "hook_out"
    template: str | None = None
    label_words: tuple[str, ...] | None = None
    context_size: int | None = None


PROMPTED = Prompt(blocks=(10, 20), at="hook_resid_post", context_size=96)
TEMPLATES = {
    "ag_news": (
        "Article: {text}\nTopic:",
        (" World", " Sports", " Business", " Technology"),
    ),
    "jigsaw": ("Comment: {text}\nIs the comment toxic? Answer:", (" No", " Yes")),
    "movie": ("Review: {text}\nSentiment:", (" negative", " positive")),
}


@dataclass(frozen=True)
class Plan:
    """What all cells have in common: sizes, and the folder with the texts."""

    data: str
    n_finetune: int = 2400
    epochs: int = 2
    context_size: int = 64
    n_dictionary: int = 1600
    n_tokens: int = 60_000
    n_study: int = 500
    # Of dictionaries: steps of so many tokens for what is trained, and tokens that clusters are fitted on.
    steps: int = 250
    batch_size: int = 1024
    n_initialization: int = 20_000
    n_ward: int = 3000
    d_sae: int = 768
    k: int = 16
    bits: float = 40.0
    # Of ablations.
    n_ablated: int = 200
    n_gradients: int = 5
    n_resamples: int = 1000
    # Of a prompted decoder, which is five times as large.
    n_prompted: int = 120
    n_prompted_tokens: int = 8_000


# Texts


@dataclass(frozen=True)
class Parts:
    """Texts that a classifier is fine-tuned on, that dictionaries are, and that are studied."""

    finetuning: LabeledTexts
    dictionary: list[str]
    study: LabeledTexts


def _same(text: str) -> str:
    """Texts that differ in case and space alone are the same."""
    return " ".join(text.casefold().split())


def _without(rows: Sequence[dict[str, Any]], taken: set[str], n: int) -> list[dict[str, Any]]:
    """The first ``n`` rows whose text is in no part yet; from now on it is."""
    kept = []
    for row in rows:
        key = _same(row["text"])
        if len(kept) < n and key and key not in taken:
            taken.add(key)
            kept.append(row)
    return kept


@lru_cache(maxsize=4)
def read_parts(plan: Plan, dataset: str) -> Parts:
    """Three parts that have no text in common, the same whatever the seeds.

    The texts that are studied are chosen first, and fine-tuning gets what is left.
    """
    folder = Path(plan.data)

    def rows(name: str) -> list[dict[str, Any]]:
        with (folder / name).open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        random.Random(0).shuffle(found)
        return found

    if dataset == "ag_news":
        study = dictionary = finetuning = rows("ag_news_test.jsonl")
    elif dataset == "jigsaw":
        study = rows("jigsaw_dev.jsonl")
        dictionary = finetuning = rows("jigsaw_train.jsonl")
    else:
        study = rows("eraser_movie_dev.jsonl")
        dictionary = rows("eraser_movie_train_unlabelled.jsonl")
        # Only texts that people labeled: ERASER's training sentences have no labels.
        reviews: Any = demo.load_dataset(demo.DATASET_NAME, split="train")
        finetuning = list(reviews)
    taken: set[str] = set()
    # A text that stands twice in a file is studied once, at most, and nowhere else.
    chosen = LabeledTexts.read(_without(study, taken, len(study) if dataset != "ag_news" else 2000))
    chosen = chosen.sample(plan.n_study)
    shown = _without(dictionary, taken, plan.n_dictionary)
    learned = _without(finetuning, taken, plan.n_finetune)
    return Parts(LabeledTexts.read(learned), [row["text"] for row in shown], chosen)


# Classifiers and their activations


def classifier_path(dataset: str, seed: int, folder: Path) -> Path:
    return folder / f"classifier-{dataset}-{seed}"


def finetune(plan: Plan, dataset: str, seed: int, folder: Path) -> dict[str, Any]:
    """MiniLM with a head on [CLS]; what a worker process does."""
    torch.set_num_threads(1)
    path = classifier_path(dataset, seed, folder)
    settings = FinetuningSettings(
        epochs=plan.epochs, batch_size=16, context_size=plan.context_size, held_out=0.1, seed=seed
    )
    if not path.exists():
        finetune_classifier(read_parts(plan, dataset).finetuning, path, settings=settings)
    return collect(plan, dataset, seed, folder)


def activations_path(dataset: str, seed: int | str, folder: Path) -> Path:
    return folder / f"activations-{dataset}-{seed}.pt"


@torch.no_grad()
def collect(plan: Plan, dataset: str, seed: int, folder: Path) -> dict[str, Any]:
    """Activations after all blocks that are asked for, of both parts, and what the head says of each text."""
    path = activations_path(dataset, seed, folder)
    parts = read_parts(plan, dataset)
    if not path.exists():
        model = load_model(str(classifier_path(dataset, seed, folder)), "TransformerBridge")
        names = parts.study.label_names
        found = {
            "dictionary": read(plan, model, parts.dictionary, names, plan.n_tokens),
            "study": read(plan, model, parts.study.texts, names),
        }
        with whole_file(path) as partial:
            torch.save(found, partial)
    study = torch.load(path, mmap=True)["study"]
    right = study["predicted"] == parts.study.labels
    return {
        "correct": [bool(r) for r in right],
        "n_finetuned": len(parts.finetuning),
        "n_study": len(parts.study),
        "chance": float(torch.bincount(parts.study.labels).max()) / len(parts.study),
    }


@torch.no_grad()
def read(
    plan: Plan,
    model: Any,
    texts: Sequence[str],
    label_names: Sequence[str],
    n_tokens: int | None = None,
    prompt: Prompt | None = None,
) -> dict[str, Any]:
    """Activations of valid tokens, whole texts up to so many tokens, and what the model says of each text.

    A classifier's [CLS] is one of the tokens, [SEP] and padding are not, nor is a prompt's template.

    Returns:
        ``acts`` by block ``[n, d]``; of each token its ``text``, its ``position`` there, and whether it
        ends a word (``is_word``); and the class that is ``predicted`` of each text.
    """
    prompt = prompt or Prompt()
    is_asked = prompt.template is not None
    encoded = encode_texts(
        model,
        texts,
        context_size=prompt.context_size or plan.context_size,
        readout="last" if is_asked else "first",
        template=prompt.template,
    )
    own = own_logits(model, label_names, label_words=prompt.label_words)
    assert own is not None
    special = special_token_ids(model, True)
    names = {f"blocks.{block}.{prompt.at}": block for block in prompt.blocks}
    acts: dict[int, list[Tensor]] = {block: [] for block in prompt.blocks}
    of_text, position, is_word, predicted = [], [], [], []
    n = 0
    for index in torch.arange(len(texts)).split(TEXTS_AT_ONCE // 4 if is_asked else TEXTS_AT_ONCE):
        if n_tokens is not None and n >= n_tokens:
            break
        width = int(encoded.attention_mask[index].sum(1).max())
        tokens, mask = encoded.tokens[index, :width], encoded.attention_mask[index, :width]
        words = encoded.word_of[index, :width]
        valid = mask & ~special_token_mask(tokens, special)
        if is_asked:
            valid &= words >= 0
        seen: dict[int, Tensor] = {}

        def keep(x: Tensor, hook: Any, seen: dict[int, Tensor] = seen) -> None:
            seen[names[hook.name]] = x

        logits = model.run_with_hooks(
            tokens,
            return_type="logits",
            fwd_hooks=[(name, keep) for name in names],
            **TextBatch(tokens, valid, mask).model_kwargs,
        )
        if is_asked:
            logits = logits[torch.arange(len(index)), encoded.readout[index]][:, None]
        predicted.append(own.read(logits).argmax(-1))
        following = torch.nn.functional.pad(words[:, 1:], (0, 1), value=-1)
        is_word.append(((words >= 0) & (words != following))[valid])
        of_text.append(index[:, None].expand_as(valid)[valid])
        position.append(torch.arange(width).expand_as(valid)[valid])
        for block, parts in acts.items():
            parts.append(seen[block][valid].float())
        n += int(valid.sum())
    return {
        "acts": {block: torch.cat(parts) for block, parts in acts.items()},
        "text": torch.cat(of_text),
        "position": torch.cat(position),
        "is_word": torch.cat(is_word),
        "predicted": torch.cat(predicted),
    }


# Dictionaries


@dataclass(frozen=True)
class Cell:
    """A pair of blocks of one model, with as many codes, and the seeds of classifier and dictionaries."""

    dataset: str
    pair: tuple[int, int]
    n_codes: int = 128
    model_seed: int = 0
    seed: int = 0
    is_prompted: bool = False

    @property
    def setting(self) -> str:
        """All but the dictionary's seed."""
        who = "smollm2" if self.is_prompted else str(self.model_seed)
        return f"{self.dataset}/{self.pair[0]}-{self.pair[1]}/{self.n_codes}/{who}"

    @property
    def key(self) -> str:
        return f"{self.setting}/{self.seed}"

    @property
    def hooks(self) -> tuple[str, str]:
        at = PROMPTED.at if self.is_prompted else Prompt().at
        lower, upper = (f"blocks.{block}.{at}" for block in self.pair)
        return lower, upper

    def file(self, folder: Path, name: str) -> Path:
        slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
        return folder / f"{self.key.replace('/', '-')}-{slug}"


class Tokens:
    """What a cell's dictionaries are fitted on and scored on: one pair of blocks of both parts."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        who = "smollm2" if cell.is_prompted else cell.model_seed
        found = torch.load(activations_path(cell.dataset, who, folder), mmap=True)
        self.shown, self.study = found["dictionary"], found["study"]
        (self.lower, self.upper), (self.study_lower, self.study_upper) = (
            [part["acts"][block].clone() for block in cell.pair]
            for part in (self.shown, self.study)
        )
        self.hooks, self.seed = cell.hooks, cell.seed

    @property
    def d(self) -> int:
        return self.lower.shape[1]

    def some(self, x: Tensor, n: int) -> Tensor:
        """A sample of the dictionary part's tokens, by the cell's seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return x[torch.randperm(len(x), generator=generator)[:n]]

    def sample(self) -> TokenSample:
        """What codes and latents are described by: all tokens of the dictionary part."""
        means = self.lower.mean(0), self.upper.mean(0)
        return TokenSample(self.hooks, self.lower, self.upper, *means)


def centers_of(x: Tensor, tokens: Tokens, plan: Plan, n: int) -> Tensor:
    kmeans = KMeans(n, n_init=1, random_state=tokens.seed)  # pyright: ignore[reportArgumentType]
    kmeans.fit(tokens.some(x, plan.n_initialization).numpy())
    return torch.from_numpy(kmeans.cluster_centers_).float()


def ward_centers(tokens: Tokens, plan: Plan, n: int) -> Tensor:
    """Means of Ward's clusters of a sample: all pairs of tokens would not fit."""
    some = tokens.some(tokens.lower, plan.n_ward)
    found = torch.from_numpy(AgglomerativeClustering(n).fit_predict(some.numpy()))
    return group_means(found, some, n)


def regression(name: str, tokens: Tokens, plan: Plan, n: int) -> CLVQVAE:
    """scikit-learn's regression of the higher block on the lower, then k-means of what it predicts."""
    x_mean, y_mean = tokens.lower.mean(0), tokens.upper.mean(0)
    x_scale = tokens.d**0.5 / (tokens.lower - x_mean).norm(dim=1).mean()
    y_scale = (tokens.upper - y_mean).square().mean().sqrt()
    x, y = (tokens.lower - x_mean) * x_scale, (tokens.upper - y_mean) / y_scale
    if name == RIDGE:
        ridge = Ridge(len(x) * 1e-4).fit(x.numpy(), y.numpy())
        layers = [(ridge.coef_, ridge.intercept_)]
    else:
        mlp = MLPRegressor(
            hidden_layer_sizes=(2 * tokens.d,),  # pyright: ignore[reportArgumentType]
            batch_size=plan.batch_size,  # pyright: ignore[reportArgumentType]  (a number or "auto")
            learning_rate_init=LEARNING_RATES[PREDICTIVE],
            # As many tokens as what is trained by steps.
            max_iter=max(round(plan.steps * plan.batch_size / len(x)), 1),
            random_state=tokens.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it has not converged.
            mlp.fit(x.numpy(), y.numpy())
        layers = [(w.T, b) for w, b in zip(mlp.coefs_, mlp.intercepts_, strict=True)]
    # In units of the activations themselves.
    layers = [(torch.as_tensor(w).float(), torch.as_tensor(b).float()) for w, b in layers]
    first, bias = layers[0]
    layers[0] = (first * x_scale, bias - first @ x_mean * x_scale)
    last, bias = layers[-1]
    layers[-1] = (last * y_scale, bias * y_scale + y_mean)
    sae = CLVQVAE.from_prediction(layers, torch.zeros(n, tokens.d))
    with torch.no_grad():
        said = [
            sae.to_target(sae.encoder(sae.process_sae_in(part)))
            for part in tokens.lower.split(TOKENS_AT_ONCE)
        ]
        sae.codebook.copy_(centers_of(torch.cat(said), tokens, plan, n))
    return sae


def clvq_config(name: str, d: int, n: int, seed: int) -> TrainingCLVQVAEConfig:
    own: dict[str, Any] = {"n_codes": n, "codebook_init_seed": seed}
    if name == PREDICTIVE:
        return TrainingCLVQVAEConfig.predictive(d, **own)
    token: dict[str, Any] = {"decoder": "token", "decoder_layers": 1, "decoder_mlp_width": 2 * d}
    if name == PAPER:
        return TrainingCLVQVAEConfig.paper(d, **own, **token)
    return TrainingCLVQVAEConfig(d_in=d, d_sae=n, codebook_init_seed=seed, **token)


def train(name: str, tokens: Tokens, plan: Plan, n: int) -> tuple[Any, float]:
    """By SAELens' trainer, one schedule for all; and the seconds of the steps, of the process's own time."""
    torch.manual_seed(tokens.seed)
    lower = tokens.lower
    if name in (PREDICTIVE, PAPER, VQ):
        rows = lower if name == VQ else pack_rows(lower, tokens.upper)
        sae: Any = TrainingCLVQVAE(clvq_config(name, tokens.d, n, tokens.seed))
        sae.calibrate(tokens.some(rows, plan.n_initialization), plan.batch_size)
    elif name == TRANSCODER:
        rows = pack_rows(lower, tokens.upper)
        sae = TrainingTopKTranscoder(
            TrainingTopKTranscoderConfig(d_in=tokens.d, d_sae=plan.d_sae, k=plan.k)
        )
        sae.calibrate(tokens.some(rows, plan.n_initialization))
    else:
        cfg = (
            TrainingBAEConfig(d_in=tokens.d, d_sae=plan.d_sae, target_entropy=plan.bits)
            if name == BAE
            else TopKTrainingSAEConfig(
                d_in=tokens.d,
                d_sae=plan.d_sae,
                k=plan.k,
                normalize_activations="expected_average_only_in",
            )
        )
        start = time.process_time()
        own = plan.steps, plan.batch_size, LEARNING_RATES[name], tokens.seed
        return fit_activations(cfg, lower, *own), time.process_time() - start
    config = trainer_config(plan.steps, plan.batch_size, LEARNING_RATES[name])
    start = time.process_time()
    SAETrainer(config, sae, ReplayedActivations(rows, plan.batch_size, tokens.seed)).fit()
    seconds = time.process_time() - start
    return sae, seconds


def fitted(name: str, cell: Cell, tokens: Tokens, plan: Plan, folder: Path) -> SAE[Any] | Clusters:
    """A dictionary, from its file if it was fitted before."""
    path, (lower, upper) = cell.file(folder, name), cell.hooks
    if not path.exists():
        seconds, n = 0.0, cell.n_codes
        centers: Callable[[], Tensor] | None = {
            KMEANS: lambda: centers_of(tokens.lower, tokens, plan, n),
            CEILING: lambda: centers_of(tokens.upper, tokens, plan, n),
            WARD: lambda: ward_centers(tokens, plan, n),
            RANDOM: lambda: tokens.some(tokens.lower, n).clone(),
        }.get(name)
        with whole_folder(path) as partial:
            if centers is not None:
                torch.save(centers(), partial / "centroids.pt")
            else:
                if name in (RIDGE, MLP):
                    sae: Any = regression(name, tokens, plan, n)
                else:
                    sae, seconds = train(name, tokens, plan, n)
                sae.cfg.metadata.hook_name = lower
                if name in (PREDICTIVE, PAPER, RIDGE, MLP, TRANSCODER):
                    sae.cfg.metadata.hook_name_out = upper
                save = sae.save_model if isinstance(sae, CLVQVAE) else sae.save_inference_model
                save(partial)
            write_text(partial / "seconds.json", json.dumps(seconds))
    if (path / "centroids.pt").exists():
        return Clusters(
            torch.load(path / "centroids.pt"), upper if name == CEILING else lower, name
        )
    return SAE.load_from_disk(path).eval()


# Scores


def run_cell(plan: Plan, cell: Cell, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Every dictionary of a cell: errors at the higher block, and NMI of words' codes with predictions."""
    torch.set_num_threads(1)
    tokens = Tokens(cell, folder)
    study, n_texts = tokens.study, len(tokens.study["predicted"])
    words, text = study["is_word"], study["text"]
    spread = (tokens.study_upper - tokens.study_upper.mean(0)).square().sum(1)
    of_words = study["predicted"][text[words]].numpy(), text[words].numpy()
    options: dict[str, Any] = {"n_resamples": plan.n_resamples}
    rows: dict[str, Any] = {}
    codes: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        dictionary = fitted(name, cell, tokens, plan, folder)
        codes[name] = shown, own = codes_of(dictionary, tokens, name == CEILING)
        n = int(max(shown.max(), own.max())) + 2  # −1: no latent is active.
        means = group_means(shown + 1, tokens.upper, n)
        errors = (tokens.study_upper - means[own + 1]).square().sum(1)
        nmi = prediction_nmi(own[words].numpy(), *of_words, **options)
        rows[name] = {
            "errors": per_text(errors, text, n_texts),
            "nmi": nmi.corrected,
            "n_in_use": len(own.unique()),
            "seconds": json.loads((cell.file(folder, name) / "seconds.json").read_text()),
        }
    for name in [name for name in OURS if name in rows]:
        own = codes[name][1][words].numpy()
        rows[name]["nmi_over"] = {
            other: prediction_nmi_difference(
                own, codes[other][1][words].numpy(), *of_words, **options
            )
            for other in names
            if other != name
        }
    with whole_file(cell.file(folder, "codes.pt")) as partial:
        torch.save(codes, partial)
    return {"rows": rows, "spread": per_text(spread, text, n_texts), "n_tokens": len(tokens.lower)}


def codes_of(
    dictionary: SAE[Any] | Clusters, tokens: Tokens, at_upper: bool
) -> tuple[Tensor, Tensor]:
    """Of the dictionary part's tokens and of those that are studied: the code, or the strongest latent."""
    shown, study = (
        (tokens.upper, tokens.study_upper) if at_upper else (tokens.lower, tokens.study_lower)
    )
    sample = tokens.sample()
    if at_upper:
        sample = sample._replace(
            hook_names=(tokens.hooks[1],) * 2, lower=tokens.upper, lower_mean=sample.upper_mean
        )
    concepts = describe(dictionary, sample)
    return concepts.active(shown, 1)[:, 0], concepts.active(study, 1)[:, 0]


def per_text(values: Tensor, text: Tensor, n: int) -> list[float]:
    return torch.zeros(n, dtype=torch.float64).index_add_(0, text, values.double()).tolist()


# Ablations


def ablated(plan: Plan, dataset: str) -> tuple[LabeledTexts, Tensor]:
    """The texts that concepts are taken out of, and their numbers among those that are studied."""
    study = read_parts(plan, dataset).study
    numbers = study.draw(plan.n_ablated)
    return study.take(numbers), numbers


def run_ablation(plan: Plan, cell: Cell, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the head loses where each text's salient code is taken out of all tokens, and the controls."""
    torch.set_num_threads(1)
    tokens, parts = Tokens(cell, folder), read_parts(plan, cell.dataset)
    path = classifier_path(cell.dataset, cell.model_seed, folder)
    texts, numbers = ablated(plan, cell.dataset)
    task = AblationTask.prepare(
        load_model(str(path), "TransformerBridge"),
        cell.hooks,
        texts,
        AblationSettings(
            max_examples=None,
            context_size=plan.context_size,
            n_steps=plan.n_gradients,
            batch_size=TEXTS_AT_ONCE,
            exclude_outlier_tokens=False,
        ),
        reference_texts=parts.dictionary[: plan.n_ablated],
        verbose=False,
    )
    salient = {"texts": numbers, "positions": task.salient.position}
    with whole_file(salient_path(cell, folder)) as partial:
        torch.save(salient, partial)
    dictionaries = {name: fitted(name, cell, tokens, plan, folder) for name in names}
    sample = tokens.sample()
    concepts = {name: describe(d, sample, name=name) for name, d in dictionaries.items()}
    own = {name: concept_subspace(task, concepts[name]) for name in names}
    length = own[KMEANS]
    assert length is not None
    generator = torch.Generator().manual_seed(cell.seed)
    removals: dict[str, Removal] = {
        **{name: subspace for name, subspace in own.items() if subspace is not None},
        DIRECTION: Subspace.random(length, generator),
        # All classes' directions but one, which has seen labels.
        LEACE: _Measure(task)._token_leace(EVERYWHERE),  # pyright: ignore[reportPrivateUsage]
    }
    rows = {name: _loss(task, removal) for name, removal in removals.items()}
    equal = {
        name: rows[name] if name == KMEANS else _loss(task, EqualNorm(removal, length))
        for name, removal in removals.items()
    }
    untouched = task.predicted == texts.labels
    return {
        "untouched": untouched.tolist(),
        "chance": float(torch.bincount(texts.labels).max()) / len(texts),
        "equal rank": rows,
        "equal norm": equal,
        "released": released(task, concepts),
        "missing": None if task.salient.missing is None else float(task.salient.missing.mean()),
    }


def _loss(task: AblationTask, removal: Removal) -> dict[str, Any]:
    outcome = ablate_passes(task, EVERYWHERE, removal, "")
    assert outcome.own_logits is not None
    right = outcome.own_logits.argmax(-1) == task.data.labels
    return {"correct": right.tolist(), "removed_norm": outcome.removed_norm}


def released(task: AblationTask, concepts: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of the paper's MLP probe by the release's arithmetic: nothing is centered.

    Its 20 folds are the task's 5 here.
    """
    settings = replace(task.settings, protocol="released", center=False, probe="mlp")
    plain = replace(task, settings=settings, measured={})
    plain.__dict__["salient"] = task.salient
    found: dict[str, Any] = {}
    for i, place in enumerate(STORED):
        probes = plain.fit_probes(plain.vectors[i])
        said = {"untouched": plain.correct(plain.vectors[i], probes)}
        for name, own in concepts.items():
            subspace = concept_subspace(plain, own, at_upper=i == 1)
            if subspace is not None:
                said[name] = plain.correct(ablate_vectors(plain, i, subspace).vectors, probes)
        found[place] = {name: right.float().mean().item() for name, right in said.items()}
    return found


def salient_path(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.setting.replace('/', '-')}-salient.pt"


# Recoverability


def recover(cell: Cell, folder: Path) -> dict[str, Any]:
    """Whether the model's prediction is told from the salient token's code alone, by each dictionary.

    A code says the class that is predicted oftenest of the dictionary part's texts that it is in, for
    that class's share of all tokens; one that none of those tokens has says nothing, which counts as a
    guess.
    """
    torch.set_num_threads(1)
    tokens = Tokens(cell, folder)
    salient, codes = (
        torch.load(path) for path in (salient_path(cell, folder), cell.file(folder, "codes.pt"))
    )
    place = {
        pair: i
        for i, pair in enumerate(
            zip(tokens.study["text"].tolist(), tokens.study["position"].tolist(), strict=True)
        )
    }
    asked = [
        place[pair]
        for pair in zip(salient["texts"].tolist(), salient["positions"].tolist(), strict=True)
    ]
    predicted = tokens.study["predicted"][salient["texts"]]
    classes = tokens.shown["predicted"][tokens.shown["text"]]
    n_classes = int(max(classes.max(), predicted.max())) + 1
    chance = 1 / len(predicted.unique())
    credits = {}
    for name, (shown, own) in codes.items():
        counts = torch.zeros(int(max(shown.max(), own.max())) + 2, n_classes)
        counts.index_put_((shown + 1, classes), torch.ones(len(shown)), accumulate=True)
        lift = counts / counts.sum(0).clamp(min=1)
        code = own[asked] + 1
        right = (lift.argmax(1)[code] == predicted).float()
        credits[name] = torch.where(counts[code].sum(1) > 0, right, chance).tolist()
    return {"credits": credits, "predicted": predicted.tolist()}


# Prompted decoders


def prompt(plan: Plan, dataset: str, folder: Path) -> dict[str, Any]:
    """SmolLM2 asked by label words: its activations, as a classifier's, and whether it is right."""
    torch.set_num_threads(1)
    path, parts = activations_path(dataset, "smollm2", folder), read_parts(plan, dataset)
    own = replace(PROMPTED, template=TEMPLATES[dataset][0], label_words=TEMPLATES[dataset][1])
    study = parts.study.take(parts.study.draw(plan.n_prompted))
    if not path.exists():
        model = demo.load_model(demo.MODEL_NAME, "HookedTransformer")
        names = study.label_names
        found = {
            "dictionary": read(plan, model, parts.dictionary, names, plan.n_prompted_tokens, own),
            "study": read(plan, model, study.texts, names, prompt=own),
        }
        with whole_file(path) as partial:
            torch.save(found, partial)
    said = torch.load(path, mmap=True)["study"]["predicted"]
    commonest = torch.bincount(study.labels).argmax()
    right, by_chance = (said == study.labels).double(), (study.labels == commonest).double()
    signal = paired_bootstrap(right - by_chance)
    return {
        "correct": (said == study.labels).tolist(),
        "chance": float(by_chance.mean()),
        "signal": signal,
        "has_signal": signal.low > 0,
        "n_classes_said": len(said.unique()),
    }
