"""Fine-tuning on tiny encoders: what is learned, what is written, and what is refused."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.finetuning import FinetuningResult, FinetuningSettings, finetune_classifier
from bae_lens.loading.classifiers import class_names
from bae_lens.loading.language_models import load_model
from tests.helpers import CONTEXT_SIZE, D_IN, make_bert_tokenizer, save_bert, write_labeled

SMALL: dict[str, Any] = {"context_size": CONTEXT_SIZE, "learning_rate": 3e-3, "batch_size": 8}


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return str(save_bert(tmp_path / "encoder", BertModel))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_labeled(tmp_path / "data.jsonl", 80)


def finetune(data: Any, output: Path, encoder: str, **settings: Any) -> FinetuningResult:
    return finetune_classifier(data, output, encoder, FinetuningSettings(**{**SMALL, **settings}))


def test_what_a_word_tells_is_learned(data: Path, encoder: str, tmp_path: Path) -> None:
    output = tmp_path / "classifier"

    result = finetune(data, output, encoder, epochs=8)

    assert result.accuracy.mean > 0.9
    assert result.accuracy.low < result.accuracy.mean
    assert result.chance == 0.5
    assert (result.n_train, len(result.held_out), result.n_duplicates) == (64, 16, 0)
    assert result.class_names == ["bad", "good"]
    assert FinetuningResult.load(output / "finetuning.json") == result
    assert json.loads((output / "finetuning.json").read_text())["accuracy"] == {
        "mean": result.accuracy.mean, "low": result.accuracy.low, "high": result.accuracy.high,
    }  # fmt: skip


def test_the_folder_is_read_by_transformers_and_by_us_with_the_same_logits(
    data: Path, encoder: str, tmp_path: Path
) -> None:
    output = tmp_path / "classifier"
    result = finetune(data, output, encoder, epochs=4)
    texts = LabeledTexts.read(data)
    held_out = [texts.texts[i] for i in result.held_out]
    encoded = AutoTokenizer.from_pretrained(output)(held_out, padding=True, return_tensors="pt")

    model = AutoModelForSequenceClassification.from_pretrained(output)
    bridge: Any = load_model(str(output), "TransformerBridge")
    with torch.no_grad():
        logits = model(**encoded).logits
        ours = bridge(encoded.input_ids, attention_mask=encoded.attention_mask)

    assert isinstance(model, BertForSequenceClassification)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert class_names(bridge) == ("bad", "good")
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
    right = logits.argmax(-1) == texts.labels[result.held_out]
    assert int(right.sum()) == result.n_correct
    assert str(tmp_path) not in (output / "config.json").read_text()
    assert (output / "model.safetensors").stat().st_mode == (output / "config.json").stat().st_mode


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def test_the_seed_decides_and_the_callers_random_numbers_stay(
    data: Path, encoder: str, tmp_path: Path
) -> None:
    seed_all(1)
    expected = torch.rand(1), random.random(), np.random.rand()
    seed_all(1)

    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        finetune(data, tmp_path / name, encoder, epochs=1, seed=seed)

    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    one, same, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other")
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_texts_that_are_cut_are_counted(encoder: str, tmp_path: Path) -> None:
    rows = [
        {"text": " ".join(["word1"] * n + [f"word{i}"]), "label": i % 2}
        for i, n in enumerate([3, 30] * 10)
    ]

    result = finetune(rows, tmp_path / "out", encoder, epochs=1, context_size=16)

    assert result.n_truncated == 10
    assert result.data is None


def test_an_earlier_result_is_replaced_and_nothing_else(
    data: Path, encoder: str, tmp_path: Path
) -> None:
    output = tmp_path / "classifier"
    finetune(data, output, encoder, epochs=1)

    again = finetune(data, output, encoder, epochs=1, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")

    assert FinetuningResult.load(output / "finetuning.json") == again
    with pytest.raises(ValueError, match="holds something else than a fine-tuned model"):
        finetune(data, tmp_path / "other", encoder)
    with pytest.raises(ValueError, match="cannot be written as a folder"):
        finetune(data, data / "x", encoder)
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_nothing_is_left_of_a_run_that_fails(data: Path, encoder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did not stay finite with learning_rate = 1e\\+30"):
        finetune(data, tmp_path / "out", encoder, learning_rate=1e30)

    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.jsonl", "encoder"]


def test_a_classifier_is_trained_on_only_with_its_own_classes(data: Path, tmp_path: Path) -> None:
    same = save_bert(tmp_path / "same")
    other = save_bert(tmp_path / "other", id2label={0: "x", 1: "y"})

    assert finetune(data, tmp_path / "out", str(same), epochs=1).n_train == 64
    with pytest.raises(ValueError, match="classifies already, into x, y, and the data have other"):
        finetune(data, tmp_path / "out", str(other), epochs=1)


def test_the_context_is_no_longer_than_the_models(data: Path, encoder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context_size is 33, and the model reads 32 tokens"):
        finetune(data, tmp_path / "out", encoder, context_size=33)


def save_other(folder: Path, kind: Any, config: Any) -> str:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    make_bert_tokenizer().save_pretrained(folder)
    return str(folder)


def test_what_a_head_reads(
    data: Path, encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 44,
        "hidden_size": D_IN,
        "num_attention_heads": 2,
        "pad_token_id": 2,
    }
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    tokens: dict[str, Any] = {
        "cls_token_id": 0,
        "sep_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    modern = save_other(tmp_path / "modern", ModernBertModel, ModernBertConfig(**sizes, **tokens))

    with pytest.raises(ValueError, match="a head of the mean is for models whose config has"):
        finetune(data, tmp_path / "out", encoder, head="mean")
    with caplog.at_level(logging.WARNING, "bae_lens"):
        finetune(data, tmp_path / "out", modern, head="mean", epochs=1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["classifier_pooling"] == "mean"
    assert "not be loaded as a TransformerBridge to be studied" in caplog.text
    with pytest.raises(
        ValueError, match="'ModernBertForSequenceClassification', and a Transformer"
    ):
        load_model(str(tmp_path / "out"), "TransformerBridge")


def test_another_encoder_than_bert(data: Path, tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=44, dim=D_IN, n_heads=2, n_layers=1, hidden_dim=32)
    folder = save_other(tmp_path / "distil", DistilBertModel, config)

    assert finetune(data, tmp_path / "out", folder, epochs=1).class_names == ["bad", "good"]


def test_a_roberta_which_has_fewer_positions_than_rows_of_them(data: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = RobertaConfig(
        vocab_size=44, intermediate_size=32, max_position_embeddings=19, pad_token_id=2, **sizes
    )
    folder = save_other(tmp_path / "roberta", RobertaModel, config)

    finetune(data, tmp_path / "out", folder, epochs=1)

    assert class_names(load_model(str(tmp_path / "out"), "TransformerBridge")) == ("bad", "good")
    with pytest.raises(ValueError, match="context_size is 17, and the model reads 16 tokens"):
        finetune(data, tmp_path / "out", folder, context_size=17)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("bae-lens/smollm2-135m", "is a decoder; what is fine-tuned is an encoder"),
        ("bae-lens/minilm", "There is no model 'bae-lens/minilm'; did you mean"),
        ("nobody/nothing", "HF_HUB_OFFLINE is set"),
    ],
)
def test_models_that_are_none(
    model: str, words: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)

    with pytest.raises(ValueError, match=words):
        finetune(data, tmp_path / "out", model)


def test_a_folder_whose_encoder_is_not_whole(data: Path, encoder: str, tmp_path: Path) -> None:
    config = Path(encoder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="16 tensors of a BertForSequenceClassification are not"):
        finetune(data, tmp_path / "out", encoder)
    for file in Path(encoder).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="there is no tokenizer in it"):
        finetune(data, tmp_path / "out", encoder)


def test_code_of_a_folder_is_not_run(data: Path, encoder: str, tmp_path: Path) -> None:
    config, ran = Path(encoder) / "config.json", tmp_path / "ran"
    (Path(encoder) / "own.py").write_text(f"open({str(ran)!r}, 'w').write('run')")
    own = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    values = json.loads(config.read_text()) | {"auto_map": own, "model_type": "foreign"}
    config.write_text(json.dumps(values))

    with pytest.raises(ValueError, match="only by running code"):
        finetune(data, tmp_path / "out", encoder)
    assert not ran.exists()


def test_a_result_that_cannot_be_one(data: Path, encoder: str, tmp_path: Path) -> None:
    result = finetune(data, tmp_path / "out", encoder, epochs=1)
    file = tmp_path / "out" / "finetuning.json"
    for values, words in (
        ({"n_correct": 17}, "17 cannot be right"),
        ({"n_truncated": -3}, "n_truncated must be 0 at least; got -3"),
        ({"held_out": [-1, *range(15)]}, "held_out must be 0 at least; got -1"),
        ({"held_out": []}, "of 0 held-out texts"),
        ({"settings": {"epochs": 0}}, "epochs must be"),
        ({"n_train": "x"}, "n_train"),
    ):
        file.write_text(json.dumps(result.to_dict() | values))
        with pytest.raises(ValueError, match=words):
            FinetuningResult.load(file)
