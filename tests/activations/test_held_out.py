"""The model and the text of a saved SAE, rebuilt from its metadata alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from sae_lens import SAE, ActivationsStore, HookedSAETransformer

from bae_lens import offline as demo
from bae_lens.activations.held_out import held_out_store, load_model_of, rows_after
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.loading import hub
from bae_lens.loading import language_models as model_loading
from bae_lens.loading.classifiers import class_names
from tests.helpers import CONTEXT_SIZE, HOOK, HOOK_OUT, make_bae, make_model, make_text, save_bert

BOS, EOS, PAD = 0, 1, 2
METADATA: dict[str, Any] = {
    "model_name": "tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "tiny-text",
    "hook_name": HOOK,
    "context_size": CONTEXT_SIZE,
    "prepend_bos": True,
    "seqpos_slice": (None,),
    "exclude_special_tokens": True,
    "disable_concat_sequences": False,
    "sequence_separator_token": "bos",
}


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_model()


@pytest.fixture
def saved(tmp_path: Path):
    """A SAE with this metadata, through the disk, which makes lists of tuples."""

    def save_and_load(**metadata: Any) -> SAE[Any]:
        sae = make_bae()
        for name, value in {**METADATA, **metadata}.items():
            if value is not ...:
                sae.cfg.metadata[name] = value
        sae.save_model(tmp_path)
        return SAE.load_from_disk(tmp_path)

    return save_and_load


# The store


@pytest.mark.parametrize("kind", [Dataset, IterableDataset, list])
def test_the_rows_after_the_first_ones(kind):
    rows: Any = make_text(5)
    given = {Dataset: rows, IterableDataset: rows.to_iterable_dataset(), list: list(rows)}[kind]
    left = rows_after(given, 3)
    assert [row["text"] for row in left] == rows["text"][3:]
    assert [row["text"] for row in left] == rows["text"][3:]
    assert list(rows_after(given, 5)) == list(rows_after(given, 9)) == []


def test_the_store_has_the_settings_of_the_metadata(saved, model):
    store = held_out_store(saved(), model, make_text(), store_batch_size_prompts=5)

    assert store.hook_name == HOOK
    assert store.context_size == CONTEXT_SIZE
    assert store.prepend_bos is True
    assert store.disable_concat_sequences is False
    assert store.sequence_separator_token == "bos"
    assert store.store_batch_size_prompts == 5
    assert store.get_batch_tokens().shape == (5, CONTEXT_SIZE)


@pytest.mark.parametrize("context_size", [4, 9])
def test_the_context_size_is_the_metadatas(saved, model, context_size):
    store = held_out_store(saved(context_size=context_size), model, make_text())

    assert store.get_batch_tokens(3).shape == (3, context_size)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_bos_is_where_training_had_it(saved, model, prepend_bos):
    sae = saved(prepend_bos=prepend_bos, sequence_separator_token=None)

    tokens = held_out_store(sae, model, make_text()).get_batch_tokens(6)

    assert (tokens[:, 0] == BOS).all() == prepend_bos
    assert not (tokens[:, 1:] == BOS).any()


@pytest.mark.parametrize(("separator", "token"), [("bos", BOS), ("eos", EOS), (7, 7)])
def test_the_separator_between_texts_is_the_metadatas(saved, model, separator, token):
    # 24 words a text: a context of 30 holds the end of one.
    sae = saved(sequence_separator_token=separator, context_size=30)
    text = Dataset.from_dict({"text": ["word30 " * 24] * 20})

    tokens = held_out_store(sae, model, text).get_batch_tokens(1)[0]

    assert tokens[1 + 24] == token


def test_the_separator_is_bos_where_the_metadata_is_silent(saved, model):
    sae = saved(sequence_separator_token=...)

    assert held_out_store(sae, model, make_text()).sequence_separator_token == "bos"


def test_texts_are_not_joined_where_training_did_not_join_them(saved, model):
    text = Dataset.from_dict({"text": [f"word{i} " * 24 for i in range(20)]})

    apart = held_out_store(saved(disable_concat_sequences=True), model, text).get_batch_tokens(6)
    joined = held_out_store(saved(), model, text).get_batch_tokens(6)

    # Each row is BOS and one text's words, and no text is in two rows.
    assert all(row[1:].unique().numel() == 1 for row in apart)
    assert apart[:, 1].unique().numel() == 6
    assert any(row[1:].unique().numel() > 1 for row in joined)


@pytest.mark.parametrize(
    ("excluded", "ids"),
    [(True, {BOS, EOS, PAD}), ([BOS, 9], {BOS, 9}), (False, None), (None, None), (..., None)],
)
def test_special_tokens_are_left_out_where_training_left_them_out(saved, model, excluded, ids):
    store = held_out_store(saved(exclude_special_tokens=excluded), model, make_text())

    stored = store.exclude_special_tokens
    assert (None if stored is None else set(stored.tolist())) == ids
    again = held_out_store(saved(exclude_special_tokens=excluded), model, make_text())
    tokens = again.get_batch_tokens()
    n_left = int((~torch.isin(tokens, torch.tensor(sorted(ids or ())))).sum())
    assert len(store.get_filtered_llm_batch()) == n_left


@pytest.mark.parametrize(("seqpos_slice", "n"), [((1, None), CONTEXT_SIZE - 1), ((2, 5), 3)])
def test_positions_are_those_of_training(saved, model, seqpos_slice, n):
    sae = saved(seqpos_slice=seqpos_slice, exclude_special_tokens=False)

    store = held_out_store(sae, model, make_text(), store_batch_size_prompts=4)

    assert len(store.get_filtered_llm_batch()) == 4 * n


def test_our_text_is_its_held_out_split(saved, model, monkeypatch):
    asked = []

    def load_dataset(name: str, split: str = "train") -> Dataset:
        asked.append((name, split))
        return make_text()

    monkeypatch.setattr(demo, "load_dataset", load_dataset)

    store = held_out_store(saved(dataset_path=demo.DATASET_NAME), model)

    assert asked == [(demo.DATASET_NAME, "test")]
    assert store.dataset is not None


def test_a_name_that_is_given_goes_before_the_metadatas(saved, model, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "load_dataset", lambda name, split: asked.append(name) or make_text())

    held_out_store(saved(), model, "other-text")

    assert asked == ["other-text"]


def test_any_other_name_is_saelens_to_load(saved, model, monkeypatch):
    asked = []

    def load_dataset(name: str, **kwargs: Any) -> Dataset:
        asked.append((name, kwargs["split"], kwargs["streaming"]))
        return make_text()

    monkeypatch.setattr(hub, "hf_load_dataset", load_dataset)

    held_out_store(saved(dataset_path="someone/text"), model)

    assert asked == [("someone/text", "train", True)]


# Two hook points


def test_the_store_of_a_cross_layer_sae_reads_where_the_sae_reads(saved, model):
    store = held_out_store(saved(hook_name_out=HOOK_OUT), model, make_text())

    assert isinstance(store, ActivationsStore)
    assert store.hook_name == HOOK
    assert store.get_batch_tokens(3).shape == (3, CONTEXT_SIZE)


@pytest.mark.parametrize(("hook_name_out", "hooks"), [(HOOK_OUT, [HOOK, HOOK_OUT]), (..., [HOOK])])
def test_sentences_where_training_read_sentences(saved, model, hook_name_out, hooks):
    sae = saved(text_unit="sentence", hook_name_out=hook_name_out, context_size=9)
    texts = [" ".join(["word5"] * n) for n in (3, 12)]

    store = held_out_store(sae, model, Dataset.from_dict({"text": texts}), 2)

    assert isinstance(store, SentenceStore)
    assert store.hook_names == hooks
    assert store.store_batch_size_prompts == 2
    assert set(store.exclude_special_tokens) == {BOS, EOS, PAD}
    tokens, mask = store.get_batch()
    assert tokens.shape == (2, 9)
    assert mask.sum(1).tolist() == [4, 9]


def test_sentences_of_the_held_out_split(saved, model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        demo, "load_dataset", lambda name, split: asked.append((name, split)) or make_text()
    )

    held_out_store(saved(text_unit="sentence", dataset_path=demo.DATASET_NAME), model)

    assert asked == [(demo.DATASET_NAME, "test")]


def test_sentences_of_any_other_name_are_loaded(saved, model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub,
        "hf_load_dataset",
        lambda name, **kwargs: asked.append((name, kwargs["split"])) or make_text(),
    )

    store = held_out_store(saved(text_unit="sentence", dataset_path="someone/text"), model)

    assert asked == [("someone/text", "train")]
    assert store.get_batch_tokens(2).shape == (2, CONTEXT_SIZE)


def test_a_unit_of_text_that_is_neither(saved, model):
    with pytest.raises(ValueError, match=r"metadata\.text_unit.*'context' or 'sentence'.*'word'"):
        held_out_store(saved(text_unit="word"), model, make_text())


# The model


def test_our_model_is_loaded_as_the_class_it_was_trained_with(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(
        demo,
        "load_model",
        lambda name, class_name, device: asked.append((name, class_name, device)) or "a model",
    )
    sae = saved(model_name=demo.MODEL_NAME, model_class_name="TransformerBridge")

    assert load_model_of(sae, device="meta") == "a model"
    assert asked == [(demo.MODEL_NAME, "TransformerBridge", "meta")]


@pytest.mark.parametrize(
    ("hook_name_out", "hooks"), [(HOOK_OUT, [HOOK, HOOK_OUT]), (HOOK, [HOOK]), (..., [HOOK])]
)
def test_any_other_model_is_saelens_to_load(saved, monkeypatch, hook_name_out, hooks):
    asked = []
    monkeypatch.setattr(
        model_loading, "sae_lens_load_model", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    kwargs = {"center_writing_weights": False}

    load_model_of(
        saved(model_name="gpt2", model_from_pretrained_kwargs=kwargs, hook_name_out=hook_name_out)
    )

    assert asked == [
        (
            ("HookedTransformer", "gpt2"),
            {"device": "cpu", "model_from_pretrained_kwargs": kwargs, "hook_names": hooks},
        )
    ]


def test_a_folder_that_metadata_names_is_opened_only_if_it_is_given(saved, tmp_path):
    folder = str(save_bert(tmp_path / "classifier"))
    sae = saved(model_name=folder, model_class_name="TransformerBridge")

    with pytest.raises(ValueError, match=r"not opened unasked.*--model '.*classifier'"):
        load_model_of(sae)
    assert class_names(load_model_of(sae, model_name=folder)) == ("bad", "good")
    assert class_names(load_model_of(sae, trust_remote_code=True)) == ("bad", "good")


# What is missing


@pytest.mark.parametrize("name", [None, ...])
def test_no_model_in_the_metadata(saved, name):
    with pytest.raises(ValueError, match=r"names no model \(metadata\.model_name\)"):
        load_model_of(saved(model_name=name))


@pytest.mark.parametrize("path", [None, ..., ""])
def test_no_dataset_in_the_metadata(saved, model, path):
    with pytest.raises(ValueError, match=r"names no dataset \(metadata\.dataset_path\).*--dataset"):
        held_out_store(saved(dataset_path=path), model)


@pytest.mark.parametrize("name", ["context_size", "hook_name", "prepend_bos"])
def test_no_setting_is_guessed(saved, model, name):
    with pytest.raises(ValueError, match=name):
        held_out_store(saved(**{name: ...}), model, make_text())


@pytest.mark.parametrize("name", ["context_size", "hook_name"])
def test_nor_one_of_sentences(saved, model, name):
    with pytest.raises(ValueError, match=name):
        held_out_store(saved(**{name: ...}, text_unit="sentence"), model, make_text())


def test_a_misspelt_name_of_ours_is_not_handed_on(saved, model):
    with pytest.raises(ValueError, match="did you mean 'bae-lens/movie-reviews'"):
        held_out_store(saved(dataset_path="bae-lens/movies"), model)
    with pytest.raises(ValueError, match="did you mean 'bae-lens/smollm2-135m'"):
        load_model_of(saved(model_name="bae-lens/smollm"))
