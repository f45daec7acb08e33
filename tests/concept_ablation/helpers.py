"""Labeled texts whose concepts are known, as vectors and as texts of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sae_lens import HookedSAETransformer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import HookedTransformerConfig
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.concept_ablation.concepts import TokenSample
from bae_lens.concept_ablation.passes import Reader
from bae_lens.concept_ablation.probes import stratified_folds
from bae_lens.concept_ablation.settings import AblationSettings, Readout
from bae_lens.concept_ablation.task import AblationTask, Salient, _fit
from bae_lens.concept_ablation.texts import EncodedTexts, encode_texts
from bae_lens.encoders import encoder_bridge
from tests import helpers

LOWER_HOOK, UPPER_HOOK = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"

# Vectors


def directions(n: int, d: int, seed: int = 0) -> Tensor:
    """Orthonormal rows that no axis is along."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, n, generator=generator))[0].T


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Planted(NamedTuple):
    """Texts at one hook point, or at two if there is an upper one.

    Attributes:
        labels: of the texts.
        vectors: of the texts.
        salient: activation of each text's salient token.
        tokens: that concepts are described by.
        upper: the vectors, and the same tokens, at the upper hook point.
    """

    labels: Tensor
    vectors: Tensor
    salient: Tensor
    tokens: Tensor
    upper: tuple[Tensor, Tensor] | None = None


def planted_task(planted: Planted, **settings: Any) -> AblationTask:
    """What ``AblationTask.prepare`` makes of texts, without the texts. No model is needed for it."""
    chosen = AblationSettings(**{"causal": False, "n_folds": 4, "probe": "logistic", **settings})
    assert chosen.n_folds is not None
    n = len(planted.labels)
    upper, upper_tokens = planted.upper or (planted.vectors, planted.tokens)
    data = LabeledTexts(
        [f"text {i}" for i in range(n)],
        planted.labels,
        [f"class {c}" for c in range(int(planted.labels.max()) + 1)],
        [None] * n,
    )
    ones = torch.ones(n, 1, dtype=torch.long)
    texts = EncodedTexts(
        tokens=ones,
        attention_mask=ones.bool(),
        word_of=0 * ones,
        words=[["word"]] * n,
        spans=[[(0, 4)]] * n,
        readout=torch.zeros(n, dtype=torch.long),
        n_truncated=0,
    )
    hook_names = (LOWER_HOOK, UPPER_HOOK if planted.upper else LOWER_HOOK)
    no_model: Any = None
    fold = stratified_folds(planted.labels, chosen.n_folds, chosen.seed)
    task = AblationTask(
        settings=chosen,
        data=data,
        reader=Reader(no_model, texts, hook_names, "last"),
        ordinary=None,
        sample=TokenSample(
            hook_names,
            planted.tokens,
            upper_tokens,
            planted.tokens.mean(0),
            upper_tokens.mean(0),
        ),
        fold=fold,
        vectors=(planted.vectors, upper),
        probes=(_fit(planted.vectors, data, fold, chosen), _fit(upper, data, fold, chosen)),
        own=None,
        own_logits=None,
    )
    nowhere = torch.zeros(n, dtype=torch.long)
    task.__dict__["salient"] = Salient(nowhere, nowhere, planted.salient, None, None)
    return task


# Texts

SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
GOOD, BAD, ODD = "good", "bad", "odd"
FILLERS = tuple(f"filler{i}" for i in range(8))
VOCABULARY = (*SPECIAL, GOOD, BAD, ODD, *FILLERS, "yes", "no", "maybe")
N_CTX = 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    return helpers.make_tokenizer(VOCABULARY[len(SPECIAL) :])


def make_model(d: int = 24, **overrides: Any) -> HookedSAETransformer:
    """Two layers with random weights, but "good" and "bad" are opposite, and all words share a mean."""
    cfg = HookedTransformerConfig(
        **{
            "model_name": "tiny",
            "n_layers": 2,
            "d_model": d,
            "n_heads": 2,
            "d_head": d // 2,
            "d_mlp": 2 * d,
            "n_ctx": N_CTX,
            "d_vocab": len(VOCABULARY),
            "act_fn": "gelu",
            "device": "cpu",
            "seed": 0,
            "initializer_range": 0.15,
            **overrides,
        }
    )
    model = HookedSAETransformer(cfg, tokenizer=make_tokenizer()).eval()
    rows = directions(len(VOCABULARY) + 1, max(d, len(VOCABULARY) + 1), seed=1)[:, :d]
    rows = 3 * rows / rows.norm(dim=1, keepdim=True)
    good, bad = VOCABULARY.index(GOOD), VOCABULARY.index(BAD)
    rows[bad] = -rows[good]
    with torch.no_grad():
        model.W_E.copy_(rows[:-1] + rows[-1])
    return model


def make_rows(
    n: int = 48, words: Sequence[str] = (GOOD, BAD), seed: int = 0
) -> list[dict[str, Any]]:
    """Texts of 4 to 7 words, one of which is their label, but never the last."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        length = int(torch.randint(3, 7, (1,), generator=generator))
        picked = torch.randint(len(FILLERS), (length,), generator=generator).tolist()
        text = [FILLERS[k] for k in picked]
        text.insert(int(torch.randint(length, (1,), generator=generator)), words[i % len(words)])
        rows.append({"text": " ".join(text), "label": words[i % len(words)]})
    return rows


def make_reader(
    model: Any = None,
    texts: Sequence[str] | None = None,
    hook_names: tuple[str, str] = (LOWER_HOOK, UPPER_HOOK),
    readout: Readout = "last",
    batch_size: int = 4,
    **options: Any,
) -> Reader:
    model = make_model() if model is None else model
    texts = [row["text"] for row in make_rows(10)] if texts is None else texts
    encoded = encode_texts(
        model, texts, context_size=N_CTX, readout="first" if readout == "first" else "last"
    )
    return Reader(model, encoded, hook_names, readout, batch_size, **options)


# A classifier


def make_classifier(
    rows: Sequence[dict[str, Any]], class_names: Sequence[str] = (GOOD, BAD), n_steps: int = 60
) -> Any:
    """A BERT of two layers with a head that was trained on rows, as a Bridge.

    Its classes are in the order of ``class_names``; with no step its weights are random.
    """
    torch.manual_seed(0)
    classes = dict(enumerate(class_names))
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=N_CTX,
            initializer_range=0.2,
            id2label=classes,
            label2id={name: i for i, name in classes.items()},
        )
    )
    bert.set_attn_implementation("eager")
    model: Any = encoder_bridge(bert, make_tokenizer(), "tiny")
    if n_steps:
        texts = encode_texts(
            model, [row["text"] for row in rows], context_size=N_CTX, readout="first"
        )
        targets = torch.tensor([list(class_names).index(row["label"]) for row in rows])
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(n_steps):
            logits: Any = model(texts.tokens, attention_mask=texts.attention_mask.long())
            optimizer.zero_grad()
            cross_entropy(logits, targets).backward()
            optimizer.step()
    return model.eval()
