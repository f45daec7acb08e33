"""Folders that ``save_pretrained`` wrote: the same numbers as transformers', or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAETransformerBridge
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from bae_lens.activations.sentence_store import SentenceStore, is_encoder_model
from bae_lens.evals.reconstruction import predicts_next_token
from bae_lens.loading.classifiers import class_names
from bae_lens.loading.language_models import load_model
from bae_lens.offline import minilm
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    make_bert_tokenizer,
    make_model,
    make_tokenizer,
    save_bert,
)

TEXTS = ["word1 word2 word3 word4 word5", "word7"]
HOOKS = ["blocks.0.hook_in", "blocks.0.hook_out", "blocks.1.hook_out"]


def load(folder: Path, **options: Any) -> Any:
    return load_model(str(folder), "TransformerBridge", options=options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "classifier")


def test_a_classifier_gives_the_logits_and_hidden_states_of_transformers(folder: Path) -> None:
    bridge = load(folder)
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(folder)(
            **encoded, output_hidden_states=True
        )
        logits, cache = bridge.run_with_cache(
            encoded.input_ids, attention_mask=encoded.attention_mask, names_filter=HOOKS
        )

    assert isinstance(bridge, SAETransformerBridge)
    assert logits.shape == (2, 2)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-5)
    mask = encoded.attention_mask.bool()
    for hook, hidden in zip(HOOKS, expected.hidden_states, strict=True):
        torch.testing.assert_close(cache[hook][mask], hidden[mask], rtol=0, atol=1e-5)
    # A text alone has the logits that it has in a batch, and without a mask it has not.
    alone = bridge(encoded.input_ids[1:, : int(mask[1].sum())])
    torch.testing.assert_close(alone[0], logits[1], rtol=0, atol=1e-5)
    assert (bridge(encoded.input_ids)[1] - logits[1]).abs().max() > 1e-3


def test_a_change_at_a_hook_changes_the_logits(folder: Path) -> None:
    bridge = load(folder)
    tokens = torch.tensor([[0, 5, 6, 1]])

    plain = bridge(tokens)
    zeroed = bridge.run_with_hooks(tokens, fwd_hooks=[(HOOKS[1], lambda x, hook: 0 * x)])
    pooled = bridge.run_with_hooks(
        tokens,
        fwd_hooks=[("classifier.hook_in", lambda x, hook: 0 * x)],
    )

    assert (plain - zeroed).abs().max() > 1e-3
    torch.testing.assert_close(pooled[0], bridge.original_model.classifier.bias)


def test_what_a_classifier_is(folder: Path, tmp_path: Path) -> None:
    bridge, bare = load(folder), load(save_bert(tmp_path / "bare", BertModel))

    assert class_names(bridge) == ("bad", "good")
    assert class_names(bridge.original_model) == ("bad", "good")
    assert class_names(bare) is class_names(make_model()) is None
    assert is_encoder_model(bridge)
    assert is_encoder_model(bare)
    assert not predicts_next_token(bridge)
    with pytest.raises(NotImplementedError, match="loss"):
        bridge(torch.tensor([[0, 5, 1]]), return_type="loss")


def test_names_are_in_the_order_of_the_logits(tmp_path: Path) -> None:
    names = {i: f"class {9 - i}" for i in range(10)}

    bridge = load(save_bert(tmp_path / "ten", id2label=names))

    assert class_names(bridge) == tuple(names.values())


def test_an_encoder_without_a_head(tmp_path: Path) -> None:
    bridge = load(save_bert(tmp_path / "bare", BertModel))
    tokens = torch.tensor([[0, 5, 6, 1]])

    logits, cache = bridge.run_with_cache(tokens)

    assert torch.equal(logits, cache["blocks.1.hook_out"])
    assert "classifier.hook_out" not in bridge.hook_dict


def test_a_masked_language_model(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "masked", BertForMaskedLM)
    bridge, tokens = load(folder), torch.tensor([[0, 5, 6, 1]])

    with torch.no_grad():
        expected = BertForMaskedLM.from_pretrained(folder)(tokens).logits

    torch.testing.assert_close(bridge(tokens), expected, rtol=0, atol=1e-5)
    assert not predicts_next_token(bridge)
    assert class_names(bridge) is None


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    cfg = GPT2Config(
        vocab_size=44, n_positions=2 * CONTEXT_SIZE, n_embd=D_IN, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(cfg).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_decoder(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "gpt2")
    bridge, tokens = load(folder), torch.tensor([[0, 5, 6]])

    with torch.no_grad():
        expected = GPT2LMHeadModel.from_pretrained(folder)(tokens).logits

    torch.testing.assert_close(bridge(tokens), expected, rtol=0, atol=1e-4)
    assert class_names(bridge) is None
    assert not is_encoder_model(bridge)


def test_the_sentence_store_reads_it_as_it_reads_each_text_alone(folder: Path) -> None:
    bridge = load(folder)
    batch = SentenceStore(bridge, TEXTS, HOOKS[1:], context_size=16).paired_batch()
    alone = SentenceStore(
        bridge, TEXTS[1:], HOOKS[1:], context_size=16, store_batch_size_prompts=1
    ).paired_batch()

    torch.testing.assert_close(batch.upper[1, :3], alone.upper[0], rtol=0, atol=1e-5)


def test_the_number_type_is_asked_for(folder: Path) -> None:
    assert load(folder).original_model.dtype == torch.float32
    assert load(folder, dtype="bfloat16").original_model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="only dtype; got fold_ln"):
        load(folder, fold_ln=True)


@pytest.mark.real_model
def test_minilm_saved_with_a_head_has_the_activations_of_the_encoder(tmp_path: Path) -> None:
    path = minilm.model_folder()
    BertForSequenceClassification.from_pretrained(path, num_labels=4).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path)
    hooks, texts = ["blocks.0.hook_in", "blocks.3.hook_out"], ["A fine film.", "A bore, all told."]

    expected = SentenceStore(minilm.load_bridge(), texts, hooks, context_size=16).paired_batch()
    actual = SentenceStore(load(tmp_path), texts, hooks, context_size=16).paired_batch()

    assert torch.equal(actual.tokens, expected.tokens)
    assert torch.equal(actual.lower, expected.lower)
    assert torch.equal(actual.upper, expected.upper)


# A RoBERTa, whose positions begin after that of padding


def save_roberta(folder: Path, kind: Any) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 2, "num_attention_heads": 2}
    cfg = RobertaConfig(
        vocab_size=44, intermediate_size=32, max_position_embeddings=2 * CONTEXT_SIZE + 3, type_vocab_size=1,
        pad_token_id=2, bos_token_id=0, eos_token_id=1, initializer_range=0.3, id2label={0: "a", 1: "b"},
        **sizes,
    )  # fmt: skip
    kind(cfg).save_pretrained(folder)
    make_bert_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind", [RobertaModel, RobertaForMaskedLM, RobertaForSequenceClassification]
)
def test_a_roberta(kind: Any, tmp_path: Path) -> None:
    folder = save_roberta(tmp_path / "roberta", kind)
    bridge = load(folder)
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    given = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    with torch.no_grad():
        expected = kind.from_pretrained(folder)(**given, output_hidden_states=True)
        logits, cache = bridge.run_with_cache(
            encoded.input_ids, attention_mask=encoded.attention_mask, names_filter=HOOKS
        )

    mask = encoded.attention_mask.bool()
    for hook, hidden in zip(HOOKS, expected.hidden_states, strict=True):
        torch.testing.assert_close(cache[hook][mask], hidden[mask], rtol=0, atol=1e-5)
    wanted = expected.last_hidden_state if kind is RobertaModel else expected.logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    # Texts as such, whose mask the bridge makes itself.
    torch.testing.assert_close(bridge(TEXTS), wanted, rtol=0, atol=1e-5)
    assert bridge.cfg.n_ctx == 2 * CONTEXT_SIZE
    classifies = kind is RobertaForSequenceClassification
    assert class_names(bridge) == (("a", "b") if classifies else None)
    assert ("classifier.hook_in" in bridge.hook_dict) == classifies
    tokens = torch.zeros(1, 2 * CONTEXT_SIZE, dtype=torch.long)
    assert bridge(tokens).isfinite().all()


# What cannot be loaded


def edit_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def larger_tokenizer(folder: Path) -> None:
    make_tokenizer([f"word{i}" for i in range(90)]).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "there is no config.json in it"),
        (lambda f: (f / "config.json").write_text("{"), "it is no JSON"),
        (lambda f: edit_config(f, architectures=None), "architectures must name a class; got None"),
        (lambda f: edit_config(f, architectures=[3]), r"must name a class; got \[3\]"),
        (lambda f: edit_config(f, architectures=["BartModel"]), "its architecture is 'BartModel'"),
        (lambda f: edit_config(f, num_hidden_layers=3), "16 tensors .* would be made up at random"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "no model.safetensors in it: the weights are",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        # Of other kinds than ValueError below.
        (lambda f: edit_config(f, num_attention_heads=1.5), "expected int, got float"),
        (lambda f: edit_config(f, "tokenizer.json", version=0), "Exception: invalid type"),
        (pickled, "pytorch_model.bin is a pickle, which can run code and is not read"),
        (without_head, "2 tensors of a BertForSequenceClassification are not among its weights"),
        (not_finite, "numbers that are NaN or infinite in classifier.weight"),
        (without_tokenizer, "there is no tokenizer in it"),
        (larger_tokenizer, "has token 93, and the model's embedding is of 44 tokens"),
        (
            lambda f: edit_config(f, id2label={"0": "a", "2": "b"}),
            "a name of its own for each class",
        ),
        (
            lambda f: edit_config(f, id2label={"0": "a", "1": "a"}),
            "a name of its own for each class",
        ),
        (lambda f: edit_config(f, problem_type="regression"), "is a regression"),
        (
            lambda f: edit_config(f, problem_type="multi_label_classification"),
            "any number of labels",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_told_in_one_sentence(
    folder: Path, damage: Any, words: str
) -> None:
    damage(folder)

    with pytest.raises(ValueError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    # A long path is cut off.
    assert str(folder)[:40] in str(caught.value)


def test_other_heads_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="'BertForTokenClassification', and a TransformerBridge is"
    ):
        load(save_bert(tmp_path / "tokens", BertForTokenClassification))
    with pytest.raises(ValueError, match="has 1 output, and no two"):
        load(save_bert(tmp_path / "one", id2label={0: "score"}))
    with pytest.raises(
        ValueError, match=r"no folder here\. A TransformerBridge is made of a folder"
    ):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("save", [save_bert, save_gpt2])
@pytest.mark.parametrize("trust", [False, True])
def test_code_of_a_folder_is_not_run_whatever_is_trusted(
    save: Any, trust: bool, tmp_path: Path
) -> None:
    folder, ran = save(tmp_path / "own"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').write('run')")
    own = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoModelForCausalLM": "own.M"}
    edit_config(folder, auto_map=own, model_type="foreign")
    tokenizer = folder / "tokenizer_config.json"
    values = json.loads(tokenizer.read_text()) | {"tokenizer_class": "Own"}
    tokenizer.write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}}))

    with pytest.raises(ValueError, match="only by running code from its folder or repository"):
        load_model(str(folder), "TransformerBridge", trust_remote_code=trust)
    assert not ran.exists()
