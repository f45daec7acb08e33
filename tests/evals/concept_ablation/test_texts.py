"""Labelled texts, and the words that their tokens are part of."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bae_lens import demo
from bae_lens.evals.concept_ablation import texts as module
from bae_lens.evals.concept_ablation.texts import LabelledTexts, encode_texts, evidence_words
from tests.helpers import make_model

ROWS = [
    {"text": "a good film", "label": 1, "evidence": "good"},
    {"text": "a bad\nfilm", "label": 0, "evidence": None},
    {"text": 'good, "very" é', "label": 1, "evidence": "very"},
]
TEMPLATE = "Review: {text}\nSentiment:"


# Reading


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def as_jsonl(path: Path) -> Path:
    return write(path / "rows.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))


def as_json_with_bom_and_crlf(path: Path) -> str:
    lines = "\r\n".join([*map(json.dumps, ROWS), "", ""])
    return str(write(path / "rows.json", lines, "utf-8-sig"))


def as_csv(path: Path) -> Path:
    pd.DataFrame(ROWS).to_csv(path / "rows.csv", index=False)
    return path / "rows.csv"


def as_csv_with_bom_and_crlf(path: Path) -> Path:
    table = pd.DataFrame(ROWS).to_csv(index=False, lineterminator="\r\n")
    return write(path / "rows.csv", table, "utf-8-sig")


@pytest.mark.parametrize(
    "source",
    [
        as_jsonl,
        as_json_with_bom_and_crlf,
        as_csv,
        as_csv_with_bom_and_crlf,
        lambda _: ROWS,
        lambda _: iter(ROWS),
        lambda _: Dataset.from_list(ROWS),
        lambda _: pd.DataFrame(ROWS).to_dict("records"),
    ],
)
def test_texts_come_from_files_datasets_and_rows(tmp_path, source):
    data = LabelledTexts.read(source(tmp_path))

    assert data.texts == [row["text"] for row in ROWS]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.label_names == ["0", "1"]
    assert data.evidence == ["good", None, "very"]
    data.check(1)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([10, 9, -1], ["-1", "9", "10"], [2, 1, 0]),
        (["10", "9", "b"], ["10", "9", "b"], [0, 1, 2]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        ([2.0, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        (["pos", " neg", "pos "], ["neg", "pos"], [1, 0, 1]),
        (list(torch.tensor([3, 1, 3]).numpy()), ["1", "3"], [1, 0, 1]),
    ],
)
def test_labels_are_numbered_in_the_order_of_their_names(labels, names, numbers):
    data = LabelledTexts.read([{"text": "a", "label": label} for label in labels])

    assert data.label_names == names
    assert data.labels.tolist() == numbers
    assert data.labels.dtype == torch.long
    assert data.evidence == [None] * 3


def test_columns_can_be_named():
    rows = [{"body": "a", "y": 0}, {"body": "b", "y": 1}]

    assert LabelledTexts.read(rows, text_column="body", label_column="y").texts == ["a", "b"]


def test_a_name_is_that_of_the_reviews_or_of_the_hub(monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(
        demo, "load_dataset", lambda n, split: load(n, split) if demo.is_demo_dataset(n) else None
    )
    monkeypatch.setattr(module, "load_dataset", load)

    assert len(LabelledTexts.read("bae-lens/movie-reviews", split="train")) == 3
    assert len(LabelledTexts.read("stanfordnlp/imdb")) == 3
    assert asked == [("bae-lens/movie-reviews", "train"), ("stanfordnlp/imdb", "test")]


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    return [row | values if i == number else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row"),
        (
            [{"txt": "a", "label": 0}],
            r"no column 'text' .*; it has 'txt', 'label'. .*txt.*text_col",
        ),
        ([{"text": "a", "labels": 0}], r"no column 'label' .*Did you mean labels.*label_column"),
        (changed(1, label=None), r"1 of 3 rows have no label in the column 'label'; .* row 2\."),
        (changed(0, label=float("nan")), "1 of 3 rows"),
        (changed(2, label=" "), "the first is row 3"),
        ([{"text": "a"}, *ROWS], "1 of 4 rows"),
        (ROWS[::2], "All 2 labels are '1'"),
        (changed(0, label=0.5), r"label of row 1 has to be a class.*0\.5"),
        (changed(0, label=[1]), "label of row 1"),
        (changed(1, text=" \n"), "Row 2 has no text"),
        (changed(1, text=None), "Row 2 has no text"),
        (changed(2, text=["a"]), r"text of row 3 has to be a string; got \['a'\]"),
        (changed(0, evidence=[1, 2]), "evidence of row 1 has to be a string or None"),
        (["a", "b"], "Row 1 has to be a mapping.*got a str"),
        (DatasetDict({"test": Dataset.from_list(ROWS)}), "give one split"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        LabelledTexts.read(rows)


def test_the_hubs_mark_of_no_label_is_one_class():
    table = Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]})
    table = table.cast_column("label", ClassLabel(names=["neg", "pos"]))
    with pytest.raises(ValueError, match=r"All 2 labels are '-1'.*the right split"):
        LabelledTexts.read(table)


@pytest.mark.parametrize("name", ["gone.csv", "gone.jsonl", "folder/gone.json", Path("gone")])
def test_a_file_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match="gone"):
        LabelledTexts.read(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text": oh}', r"a\.jsonl, line 3 is not JSON"),
        ("a.json", '[{"text": "a", "label": 0}]', r"a\.json, line 1 has to be an object.*a list"),
        (
            "a.csv",
            'text,label\n"a\nb",0\nc,d,1\n',
            r"a\.csv, line 4: a row has to have.*text, label",
        ),
        ("a.csv", "text,label\na\n", r"a\.csv, line 2: a row"),
        ("a.csv", 'text,label\n"a,0\n', r"a\.csv, line [23]: unexpected end"),
        ("a.csv", "", "no row"),
        ("a.tsv", "text\tlabel", r"\.jsonl, \.json, \.csv; its suffix is '\.tsv'"),
    ],
)
def test_a_file_that_is_broken_is_named_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        LabelledTexts.read(str(write(tmp_path / name, content)))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\né,0\n", "latin-1")
    with pytest.raises(ValueError, match=r"a\.csv has to be UTF-8"):
        LabelledTexts.read(path)


def test_what_stands_for_nothing_in_pandas_is_a_text(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nNA,0\nnull,1\n")

    assert LabelledTexts.read(path).texts == ["NA", "null"]


# Sampling


def make_labelled(counts: list[int]) -> LabelledTexts:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    texts = [f"text {i}" for i in range(len(labels))]
    return LabelledTexts(texts, labels, [f"class {i}" for i in range(len(counts))], [*texts])


@pytest.mark.parametrize(
    ("counts", "n", "expected"),
    [
        ([60, 30, 10], 20, [12, 6, 2]),
        ([60, 30, 10], 7, [4, 2, 1]),
        ([5, 5], 3, [2, 1]),
        ([5, 5], 10, [5, 5]),
        ([5, 5], 99, [5, 5]),
        ([99, 1], 10, [10, 0]),
    ],
)
def test_a_sample_keeps_the_shares(counts, n, expected):
    data = make_labelled(counts)

    sample = data.sample(n)

    assert sample.labels.bincount(minlength=len(counts)).tolist() == expected
    assert sample.label_names == data.label_names
    assert len(set(sample.texts)) == len(sample)
    for text, label, evidence in zip(sample.texts, sample.labels, sample.evidence, strict=True):
        assert evidence == text
        assert data.labels[data.texts.index(text)] == label


def test_a_sample_is_shuffled_and_the_same_again():
    data = make_labelled([30, 30])

    assert data.sample(20, seed=1).texts == data.sample(20, seed=1).texts
    assert data.sample(20, seed=1).texts != data.sample(20, seed=2).texts
    assert data.sample(60).texts != data.texts
    assert data.sample(60).labels.diff().abs().sum() > 5
    with pytest.raises(ValueError, match="got n = 0"):
        data.sample(0)


def test_every_fold_needs_every_class():
    make_labelled([6, 4]).check(4)
    with pytest.raises(ValueError, match=r"Each of 5 folds .* 6 of 'class 0', 4 of 'class 1'\."):
        make_labelled([6, 4]).check(5)
    with pytest.raises(ValueError, match="two classes at least; got 6 of 'class 0', 0 of"):
        make_labelled([6, 0]).check(1)
    with pytest.raises(ValueError, match="0 … 1"):
        LabelledTexts(["a", "b"], torch.tensor([0, 2]), ["x", "y"], [None] * 2).check(1)
    with pytest.raises(ValueError, match="2 texts, 1 labels and 2 evidences"):
        LabelledTexts(["a", "b"], torch.tensor([0]), ["x", "y"], [None] * 2).check(1)


# Tokens


CORPUS = ["Review: a good film, a bad film, an unbelievably good film\nSentiment: good. 1975 é"] * 4


def stub(tokenizer: PreTrainedTokenizerFast, n_ctx: int = 64) -> Any:
    """What is asked of a model."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        cfg=SimpleNamespace(n_ctx=n_ctx),
        to_tokens=lambda text: (
            torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
            if tokenizer.bos_token
            else torch.tensor([tokenizer(text).input_ids])
        ),
    )


@pytest.fixture(scope="module")
def gpt() -> Any:
    """Byte-level BPE, which joins a space to the word after it; its BOS is put there by the model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<bos>"], show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return stub(PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>"))


@pytest.fixture(scope="module")
def bert() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "bad", "un", "##believ"]
    words += ["##ably", "review", "sentiment", ":", ",", ".", "##s"]
    pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    pieces.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return stub(
        PreTrainedTokenizerFast(
            tokenizer_object=pieces,
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
        )
    )


def encode(model: Any, texts: list[str], **options: Any) -> Any:
    return encode_texts(model, texts, **{"context_size": 64, "readout": "last", **options})


def tokens_of(model: Any, row: torch.Tensor) -> list[str]:
    return model.tokenizer.convert_ids_to_tokens(row.tolist())


def test_wordpieces_are_parts_of_words(bert):
    encoded = encode(bert, ["Unbelievably  good, films", "bad"])

    assert tokens_of(bert, encoded.tokens[0]) == (
        ["[CLS]", "un", "##believ", "##ably", "good", ",", "film", "##s", "[SEP]"]
    )
    assert encoded.word_of.tolist() == [[-1, 0, 0, 0, 1, 2, 3, 3, -1], [-1, 0] + [-1] * 7]
    assert encoded.words == [["Unbelievably", "good", ",", "films"], ["bad"]]
    assert encoded.spans == [[(0, 12), (14, 18), (18, 19), (20, 25)], [(0, 3)]]
    assert encoded.attention_mask.tolist() == [[True] * 9, [True] * 3 + [False] * 6]
    assert encoded.readout.tolist() == [7, 1]
    assert encoded.n_truncated == 0


def test_bytes_are_parts_of_words_without_their_space(gpt):
    encoded = encode(gpt, [" good film. 日é", "good"])

    words = encoded.words[0]
    assert words == ["good", "film", ".", "日é"]
    assert encoded.spans[0] == [(1, 5), (6, 10), (10, 11), (12, 14)]
    assert tokens_of(gpt, encoded.tokens[0, :3]) == ["<bos>", "Ġgood", "Ġfilm"]
    # The space before 日 is a token of its own, and no part of the word.
    assert encoded.word_of[0].tolist() == [-1, 0, 1, 2, -1] + [3] * (encoded.tokens.shape[1] - 5)
    assert encoded.tokens[1, 0] == gpt.tokenizer.bos_token_id
    assert encoded.attention_mask[1].sum() == encoded.readout[1] + 1


def test_a_text_begins_as_the_model_has_it():
    model = make_model()
    encoded = encode(model, ["word1 word2"], context_size=16)

    assert torch.equal(encoded.tokens, model.to_tokens("word1 word2"))
    assert encoded.word_of.tolist() == [[-1, 0, 1]]
    assert encode(model, ["word1 word2"], context_size=16, readout="first").readout.tolist() == [0]


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_the_template_is_part_of_no_word(name, request):
    model = request.getfixturevalue(name)

    encoded = encode(model, ["a good film {text}", "bad"], template=TEMPLATE)

    assert encoded.words[0][:3] == ["a", "good", "film"]
    assert encoded.spans[1] == [(0, 3)]
    of_words = encoded.word_of[1] == 0
    assert "".join(tokens_of(model, encoded.tokens[1, of_words])).strip("Ġ") == "bad"
    assert (encoded.word_of[1] >= 0).sum() == of_words.sum()
    # After the text and before [SEP].
    assert tokens_of(model, encoded.tokens[1, encoded.readout[1, None]]) == [":"]


def test_a_token_that_covers_text_and_template_is_part_of_the_word(gpt):
    # One token "Ġgood", of which the template has the space or some letters.
    for template, text in ((" {text}", "good"), (" go{text}", "od"), ("{text}od", " go")):
        encoded = encode(gpt, [text], template=template)

        assert tokens_of(gpt, encoded.tokens[0]) == ["<bos>", "Ġgood"]
        assert encoded.words == [[text.strip()]]
        assert encoded.word_of.tolist() == [[-1, 0]]
    space = encode(gpt, [" "], template="{text}good")
    assert space.words == [[]]
    assert space.word_of.max() == -1


def test_words_are_parted_at_space_where_the_tokenizer_does_not():
    # As Llama-2's and Gemma's: all of a text is one word to them.
    whole = Tokenizer(models.BPE({c: i for i, c in enumerate("▁ab")}, []))
    whole.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore[reportAttributeAccessIssue]
    model = stub(PreTrainedTokenizerFast(tokenizer_object=whole))

    encoded = encode(model, ["ab  ba a"])

    assert encoded.words == [["ab", "ba", "a"]]
    assert encoded.word_of.tolist() == [[0, 0, -1, -1, 1, 1, -1, 2]]


# Length


@pytest.mark.parametrize("name", ["gpt", "bert"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_long_texts_are_cut_and_the_template_stays(name, template, request, caplog):
    model = request.getfixturevalue(name)
    text = "a good film, " * 20
    texts = [text, "bad", text]

    with caplog.at_level(logging.WARNING):
        encoded = encode(model, texts, context_size=40, template=template)

    (record,) = [r for r in caplog.records if "bae_lens" in r.name]
    assert record.getMessage() == "2 of 3 texts were too long and cut to 40 tokens."
    assert encoded.n_truncated == 2
    assert 37 <= encoded.attention_mask[0].sum() <= 40
    n = len(encoded.words[0])
    assert encoded.words[0] == (["a", "good", "film", ","] * 20)[:n]
    cut = text[: encoded.spans[0][-1][1]]
    whole = encode(model, [cut], template=template)
    assert whole.n_truncated == 0
    assert torch.equal(encoded.tokens[0, encoded.attention_mask[0]], whole.tokens[0])
    assert encoded.readout[0] == whole.readout[0]


def test_a_text_that_fits_is_whole(bert, caplog):
    text = "a good film"

    assert encode(bert, [text], context_size=5).n_truncated == 0
    assert not caplog.records
    assert encode(bert, [text], context_size=4).words == [["a", "good"]]


def test_a_character_of_several_tokens_is_kept_or_cut_whole(gpt):
    n_tokens = encode(gpt, ["a日日"]).tokens.shape[1]

    assert n_tokens == 8
    assert encode(gpt, ["a日日"], context_size=7).words == [["a日"]]


def test_a_text_is_cut_without_the_space_before_what_goes(gpt):
    # As RoBERTa's, whose tokens begin after the space that is in them.
    tokenizer = copy.deepcopy(gpt.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)

    encoded = encode(stub(tokenizer), [" good film bad bad"], context_size=4)

    assert tokens_of(gpt, encoded.tokens[0]) == ["<bos>", "Ġgood", "Ġfilm", "Ġbad"]


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_a_template_that_leaves_no_room_is_refused(name, request):
    model = request.getfixturevalue(name)
    shortest = int(encode(model, ["a"], template=TEMPLATE).attention_mask.sum())

    assert encode(model, ["a bad"], template=TEMPLATE, context_size=shortest).words == [["a"]]
    with pytest.raises(ValueError, match=r"no room for a text.*larger context_size or a shorter"):
        encode(model, ["a bad"], template=TEMPLATE, context_size=shortest - 1)


# Errors


@pytest.mark.parametrize("template", ["Review:", "{text} {text}", ""])
def test_a_template_has_one_place_for_the_text(bert, template):
    with pytest.raises(ValueError, match=r"\{text\} has to stand in the template once"):
        encode(bert, ["a"], template=template)


def test_a_text_without_a_token_is_named(bert):
    with pytest.raises(ValueError, match=r"no token of text 1, '\\u200b'"):
        encode(bert, ["a", "\u200b"])
    # The template's tokens are there to be read.
    assert encode(bert, ["a", "\u200b"], template=TEMPLATE).words == [["a"], []]


def test_what_cannot_be_encoded_is_refused(bert):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        encode(SimpleNamespace(tokenizer=None), ["a"])
    with pytest.raises(ValueError, match="the slow SimpleNamespace"):
        encode(SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False)), ["a"])
    with pytest.raises(ValueError, match="more than the model's 64"):
        encode(bert, ["a"], context_size=65)
    with pytest.raises(ValueError, match="'last' or 'first'; got 'mean'"):
        encode(bert, ["a"], readout="mean")
    with pytest.raises(ValueError, match="no texts"):
        encode(bert, [])


# Evidence


def test_evidence_covers_words_in_whole_or_in_part(bert):
    texts = ["a good\n film, a bad film"] * 8
    evidence = ["good  film,", "ood fi", "film", "a bad film", "Good", None, " ", "good film, a."]

    found = evidence_words(encode(bert, texts), texts, evidence)

    assert found == [{1, 2, 3}, {1, 2}, {2}, {4, 5, 6}, set(), set(), set(), set()]


def test_evidence_that_was_cut_off_covers_nothing(bert):
    texts = ["a good film , a bad film"]
    encoded = encode(bert, texts, context_size=5)

    assert evidence_words(encoded, texts, ["bad"]) == [set()]
    assert evidence_words(encoded, texts, ["film , a bad"]) == [{2}]
    with pytest.raises(ValueError, match=r"texts \(1\) and evidences \(2\)"):
        evidence_words(encoded, texts, ["bad", None])


# Real tokenizers


@pytest.mark.real_model
@pytest.mark.parametrize("name", [demo.MODEL_NAME, demo.ENCODER_NAME])
def test_words_of_real_reviews_are_what_their_tokens_say(name):
    model: Any = demo.load_model(name, "TransformerBridge")
    texts = LabelledTexts.read(demo.DATASET_NAME).sample(100).texts
    texts += [" Good  film. xé日 1975 don't", "“Well…” – naïve!"]

    for template in (None, TEMPLATE):
        encoded = encode_texts(model, texts, context_size=128, readout="last", template=template)

        assert 0 < encoded.n_truncated < len(texts)
        assert encoded.attention_mask.sum(1).max() <= 128
        for text, words, spans, tokens, word_of in zip(
            texts, encoded.words, encoded.spans, encoded.tokens, encoded.word_of, strict=True
        ):
            assert words == [text[a:b] for a, b in spans]
            assert all(word and word == word.strip() for word in words)
            ends = [position for span in spans for position in span]
            assert ends == sorted(ends)
            for k, word in enumerate(words):
                read = model.tokenizer.decode(tokens[word_of == k]).replace(" ", "")
                if (
                    name == demo.ENCODER_NAME
                ):  # lower case, no accents, space around what is Chinese
                    word = model.tokenizer.backend_tokenizer.normalizer.normalize_str(word).strip()
                assert read == word
    if name == demo.MODEL_NAME:
        whole = encode_texts(model, texts[-2:], context_size=128, readout="last")
        for text, row, mask in zip(texts[-2:], whole.tokens, whole.attention_mask, strict=True):
            assert torch.equal(row[mask], model.to_tokens(text)[0])
