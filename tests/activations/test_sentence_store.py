"""Texts as sequences of their own: what a model is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import SAETransformerBridge
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.load_model import HookedProxyLM
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformer_lens import HookedEncoder, HookedTransformer, HookedTransformerConfig
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from bae_lens.activations.sentence_store import SentenceStore, is_encoder_model
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    make_bridge,
    make_model,
    make_neox_bridge,
    make_tokenizer,
)

PAD, UNK, CLS, SEP = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple(f"word{i}" for i in range(40))
TEXTS = [
    "word1 word2 word3 word4 word5 word6",
    "word7",
    "word8 word9 word8",
    "word10 word11 word12 word13",
    "word14 word15",
]


def make_encoder() -> SAETransformerBridge:
    """A two-layer BERT with random weights as a Bridge, its tokenizer putting [CLS] and [SEP]."""
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    words.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(SPECIAL + WORDS),
            hidden_size=D_IN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * D_IN,
            max_position_embeddings=2 * CONTEXT_SIZE,
            initializer_range=0.3,
        )
    )
    bert.set_attn_implementation("eager")  # as the Bridge loads a model itself
    return SAETransformerBridge.boot_transformers(
        "tiny-bert", hf_model=bert.eval(), tokenizer=tokenizer, device="cpu"
    )


def hooked_cfg(**overrides: Any) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        **{
            "n_layers": 1,
            "d_model": D_IN,
            "n_heads": 2,
            "d_head": D_IN // 2,
            "d_mlp": 2 * D_IN,
            "n_ctx": CONTEXT_SIZE,
            "d_vocab": len(SPECIAL + WORDS),
            "act_fn": "gelu",
            "seed": 0,
            "initializer_range": 0.3,
            **overrides,
        }
    )


@pytest.fixture(scope="module")
def encoder() -> SAETransformerBridge:
    return make_encoder()


@pytest.fixture(scope="module", params=["encoder", "decoder", "decoder bridge"])
def model_and_hooks(request, tmp_path_factory) -> tuple[Any, list[str]]:
    """A model, and the names of its residuals after both blocks."""
    if request.param == "decoder":
        return make_model(), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    hooks = ["blocks.0.hook_out", "blocks.1.hook_out"]
    if request.param == "encoder":
        return make_encoder(), hooks
    return make_bridge(tmp_path_factory.mktemp("gpt2")), hooks


def store(model: Any, dataset: Any = TEXTS, **overrides: Any) -> SentenceStore:
    """Over an encoder, two texts a batch."""
    options = {
        "hook_names": ["blocks.0.hook_out", "blocks.1.hook_out"],
        "context_size": CONTEXT_SIZE,
        "store_batch_size_prompts": 2,
        **overrides,
    }
    return SentenceStore(model, dataset, **options)


def first_words(sentences: Any) -> list[int]:
    """Number of the word that each text begins with."""
    return [int(row[1]) - len(SPECIAL) for row in sentences.tokens]


def one_epoch(reader: SentenceStore) -> list[int]:
    """Number of the word that each text begins with, to the end of the dataset."""
    words: list[int] = []
    while True:
        try:
            words += first_words(reader.paired_batch(raise_on_epoch_end=True))
        except StopIteration:
            return words


# Activations


def test_a_text_has_the_same_activations_alone_and_padded(model_and_hooks):
    model, hooks = model_and_hooks
    together = SentenceStore(model, TEXTS, hooks, context_size=CONTEXT_SIZE)
    alone = SentenceStore(model, TEXTS, hooks, context_size=CONTEXT_SIZE)
    alone.store_batch_size_prompts = 1
    together.store_batch_size_prompts = len(TEXTS)

    batch = together.paired_batch()

    assert not batch.valid.all()
    for i in range(len(TEXTS)):
        expected = alone.paired_batch()
        valid = batch.valid[i]
        assert expected.valid.all()
        assert torch.equal(batch.tokens[i, valid], expected.tokens[0])
        for actual, known in ((batch.lower, expected.lower), (batch.upper, expected.upper)):
            torch.testing.assert_close(actual[i, valid], known[0], rtol=0, atol=1e-5)


def test_without_the_mask_an_encoder_would_give_something_else(encoder):
    batch = store(encoder).paired_batch()

    _, cache = encoder.run_with_cache(batch.tokens, names_filter=["blocks.1.hook_out"])

    short = batch.valid[1]
    assert (cache["blocks.1.hook_out"][1] - batch.upper[1])[short].abs().max() > 0.1


def test_both_hooks_are_those_of_the_model(model_and_hooks):
    model, hooks = model_and_hooks
    batch = SentenceStore(model, TEXTS[:1], hooks, context_size=CONTEXT_SIZE).paired_batch()

    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens, names_filter=hooks)

    torch.testing.assert_close(batch.lower, cache[hooks[0]])
    torch.testing.assert_close(batch.upper, cache[hooks[1]])
    assert not batch.upper.requires_grad


@pytest.mark.parametrize("hook_names", [["blocks.0.hook_out"], ["blocks.0.hook_out"] * 2])
def test_of_a_single_hook_the_upper_is_the_lower(encoder, hook_names):
    batch = store(encoder, hook_names=hook_names, dtype=torch.bfloat16).paired_batch()

    assert batch.upper is batch.lower
    assert batch.lower.dtype == torch.bfloat16
    assert batch.lower.shape == (*batch.tokens.shape, D_IN)


def test_blocks_above_the_upper_hook_are_not_run(encoder):
    runs: list[str] = []
    with encoder.hooks(
        fwd_hooks=[("blocks.1.mlp.out.hook_out", lambda x, hook: runs.append(hook.name))]
    ):
        store(encoder, hook_names=["blocks.0.hook_out"]).paired_batch()
        assert not runs
        store(encoder, hook_names=["embed.hook_out", "blocks.0.hook_out"]).paired_batch()
        assert runs


def test_heads_stand_side_by_side():
    batch = store(make_model(), hook_names=["blocks.0.attn.hook_z"]).paired_batch()

    assert batch.lower.shape == (*batch.tokens.shape, D_IN)


def test_the_models_arguments_are_passed_on(encoder):
    batch = store(encoder, model_kwargs={"pos_slice": (0, 2)}).paired_batch()

    assert batch.lower.shape[1] == 2 < batch.tokens.shape[1]


# What counts


def test_neither_padding_nor_special_tokens_are_valid(encoder):
    batch = store(encoder, exclude_special_tokens=[CLS, SEP]).paired_batch()

    assert batch.tokens[1].tolist() == [CLS, len(SPECIAL) + 7, SEP, PAD, PAD, PAD, PAD, PAD]
    assert batch.valid.tolist() == [[False] + [True] * 6 + [False], [False, True] + [False] * 6]


def test_cls_counts_unless_it_is_excluded(encoder):
    assert store(encoder).paired_batch().valid[:, 0].all()
    assert store(encoder, exclude_special_tokens=[SEP]).paired_batch().valid[:, 0].all()
    assert not store(encoder, exclude_special_tokens=[CLS]).paired_batch().valid[:, 0].any()


def test_a_token_that_pads_elsewhere_counts_where_the_text_has_it():
    model = make_model()
    model.tokenizer.pad_token = model.tokenizer.eos_token  # pyright: ignore[reportOptionalMemberAccess]
    eos = model.tokenizer.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]

    tokens, mask = store(model, ["word1 <eos> word2 word3", "word4"]).get_batch()

    assert tokens[0, 2] == tokens[1, 2] == eos
    assert mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_decoders_text_begins_with_bos_once(adds_bos):
    model = make_model()
    if not adds_bos:
        # Some tokenizers cannot: SmolLM2's, for one. TransformerLens then puts BOS into the text.
        model.tokenizer = make_tokenizer()
        model.tokenizer.add_bos_token = False
        model.cfg.tokenizer_prepends_bos = False

    tokens = store(model, [TEXTS[0]], store_batch_size_prompts=1).get_batch_tokens()

    assert torch.equal(tokens, model.to_tokens(TEXTS[0]))
    assert tokens[0, :2].tolist() == [0, len(SPECIAL) + 1]
    assert store(model, TEXTS[:1], context_size=4).get_batch_tokens().shape[1] == 4


def test_a_text_of_a_model_without_bos_has_none(tmp_path: Path):
    hooked = make_model()
    hooked.cfg.default_prepend_bos = False
    for model in (hooked, make_neox_bridge(tmp_path)):
        tokens = store(model, TEXTS[:1], store_batch_size_prompts=1).get_batch_tokens()
        assert torch.equal(tokens, model.to_tokens(TEXTS[0]))
        assert tokens[0, 0].item() == len(SPECIAL) + 1
        # The room of the BOS that the tokenizer puts there and the model has not is the text's.
        assert store(model, TEXTS[:1], context_size=3).get_batch_tokens().shape[1] == 3


def test_long_texts_are_cut_and_keep_their_special_tokens(encoder, model_and_hooks):
    tokens, mask = store(encoder, context_size=5).get_batch()

    assert tokens[0].tolist() == [CLS, *(len(SPECIAL) + i for i in (1, 2, 3)), SEP]
    assert mask[0].all()
    model, hooks = model_and_hooks
    assert SentenceStore(model, TEXTS, hooks, context_size=5).get_batch_tokens().shape[1] == 5


def test_texts_with_nothing_in_them_are_passed_over(encoder):
    texts = ["", "word1", "  \n", "\u200b", "word2"]  # the fourth is one that BERT drops

    assert first_words(store(encoder, texts).get_batch()) == [1, 2]
    table = Dataset.from_dict({"text": ["word3", None, "word4"]})
    assert first_words(store(encoder, table).get_batch()) == [3, 4]


@pytest.mark.parametrize("gap", [None, "", float("nan")])
@pytest.mark.parametrize("kind", ["list", "table", "rows"])
def test_so_are_missing_ones_wherever_they_stand(encoder, gap, kind, caplog):
    texts = [gap, "word1", gap, "word2", gap]
    dataset: Any = texts if kind == "list" else [{"text": text} for text in texts]
    if kind == "table":
        dataset = Dataset.from_dict({"text": [None if gap != gap else gap for gap in texts]})
    reader = store(encoder, dataset)
    for _ in range(3):
        assert one_epoch(reader) == [1, 2]
    where = "" if kind == "list" else " in the column 'text'"
    assert [r.getMessage() for r in caplog.records if r.name.startswith("bae_lens")] == [
        f"The 1. row that was read has no text{where}; such rows are passed over.",
        f"3 of 5 rows have no text{where} and were passed over.",
    ]


def test_the_column_is_found_where_its_first_text_is_missing(encoder):
    rows = [{"text": None, "sentence": None}, {"text": None, "sentence": "word3"}]
    assert store(encoder, rows).column == "sentence"
    assert store(encoder, [None, "word1"]).column is None
    with pytest.raises(ValueError, match=r"all of them are missing .'text', 'n' are its columns"):
        store(encoder, [{"text": None, "n": 1}] * 3)


@pytest.mark.parametrize("value", [5, 2.5, ["a"], {"a": 1}, b"abc", "a\ud800"])
def test_what_is_no_text_is_refused_with_row_and_value(encoder, value):
    with pytest.raises(ValueError, match=r"row 2 ha.*(got |'\\ud800')") as caught:
        store(encoder, [{"text": "word1"}, {"text": value}]).get_batch()
    str(caught.value).encode()
    with pytest.raises(ValueError, match=r"Text 2 has .*(got |'\\ud800')"):
        store(encoder, ["word1", value]).get_batch()
    if not isinstance(value, str):
        with pytest.raises(ValueError, match=r"no column 'text' .* with texts; row 1 has .* there"):
            store(encoder, [{"text": value}])


def test_a_nul_is_a_character_like_another(encoder):
    assert first_words(store(encoder, ["word1\0 word2"]).get_batch(1)) != []


def test_what_can_be_read_once_only_is_refused(encoder):
    with pytest.raises(ValueError, match="a generator, which can be read once only"):
        store(encoder, (text for text in TEXTS))


def test_there_has_to_be_a_text(encoder):
    with pytest.raises(ValueError, match="no text in the dataset"):
        store(encoder, ["", " "]).get_batch()


# Reading


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda texts: texts, id="list"),
        pytest.param(lambda texts: Dataset.from_dict({"text": texts}), id="text"),
        pytest.param(lambda texts: Dataset.from_dict({"sentence": texts}), id="sentence"),
        pytest.param(
            lambda texts: Dataset.from_dict({"text": texts}).to_iterable_dataset(), id="iterable"
        ),
    ],
)
def test_texts_come_in_order_and_resume_where_they_were(
    encoder, tmp_path, kind: Callable[[list[str]], Any]
):
    texts = ["", *TEXTS]
    reader = store(encoder, kind(texts))
    reader.get_batch()

    reader.save_to_checkpoint(tmp_path)
    resumed = store(encoder, kind(texts))
    resumed.load_from_checkpoint(tmp_path)

    for words in ([8, 10], [14, 1], [7, 8]):
        expected, actual = reader.paired_batch(), resumed.paired_batch()
        assert first_words(actual) == words
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_checkpoint_of_another_store_is_refused(encoder, tmp_path: Path):
    save_file({"n_dataset_processed": torch.tensor(3)}, tmp_path / ACTIVATIONS_STORE_STATE_FILENAME)
    with pytest.raises(ValueError, match=r"not written by SentenceStore.*n_dataset_processed"):
        store(encoder).load_from_checkpoint(tmp_path)


def test_at_the_end_it_begins_again(encoder):
    reader = store(encoder)

    assert [first_words(reader.get_batch()) for _ in range(4)] == [[1, 7], [8, 10], [14, 1], [7, 8]]
    reader.reset_input_dataset()
    assert first_words(reader.get_batch(3)) == [1, 7, 8]
    assert first_words(reader.get_batch(8)) == [10, 14, 1, 7, 8, 10, 14, 1]


@pytest.mark.parametrize("n", [4, 5])
def test_or_says_so_once_every_text_was_served(encoder, n):
    reader = store(encoder, TEXTS[:n])
    words = [1, 7, 8, 10, 14][:n]

    assert one_epoch(reader) == words
    assert one_epoch(reader) == words
    assert first_words(reader.get_batch()) == words[:2]


# Errors


def test_a_model_that_cannot_read_texts_is_refused():
    model = HookedTransformer(hooked_cfg())
    with pytest.raises(ValueError, match="no tokenizer"):
        store(model)


def test_a_model_that_takes_no_mask_is_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=44, n_embd=D_IN, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"HookedProxyLM takes no attention_mask.*Bridge"):
        store(HookedProxyLM(gpt2, make_tokenizer()))


@pytest.mark.parametrize("context_size", [2, 2 * CONTEXT_SIZE + 1])
def test_a_context_that_holds_no_text_or_more_than_the_model_is_refused(encoder, context_size):
    with pytest.raises(ValueError, match=f"context_size is {context_size}; .* between 3 .* 32"):
        store(encoder, context_size=context_size)


@pytest.mark.parametrize("hook_names", [[], ["a", "b", "c"], "blocks.0.hook_out"])
def test_hooks_are_one_or_two(encoder, hook_names):
    with pytest.raises(ValueError, match="hook_names are the lower and the upper"):
        store(encoder, hook_names=hook_names)


def test_a_dataset_without_texts_is_refused_with_what_it_has(encoder):
    tokens = Dataset.from_dict({"tokens": [[1, 2]], "label": [0]})
    with pytest.raises(ValueError, match=r"no column 'text' or .*; it has 'tokens', 'label'"):
        store(encoder, tokens)
    with pytest.raises(ValueError, match="no column 'body' with texts; it has 'text'"):
        store(encoder, Dataset.from_dict({"text": TEXTS}), column="body")
    with pytest.raises(ValueError, match="no column 'label' with texts"):
        store(encoder, Dataset.from_dict({"text": TEXTS, "label": [0] * 5}), column="label")
    with pytest.raises(ValueError, match="holds a list"):
        store(encoder, [[1, 2], [3]])


def test_a_name_or_all_splits_of_a_dataset_are_refused(encoder):
    with pytest.raises(ValueError, match="loaded dataset, one split of it; got 'imdb'"):
        store(encoder, "imdb")
    splits = DatasetDict({name: Dataset.from_dict({"text": TEXTS}) for name in ("train", "test")})
    with pytest.raises(ValueError, match="got the splits train, test"):
        store(encoder, splits)


def test_a_column_can_be_named(encoder):
    table = Dataset.from_dict({"text": ["word1"] * 2, "title": ["word2"] * 2})

    assert first_words(store(encoder, table).get_batch()) == [1, 1]
    assert first_words(store(encoder, table, column="title").get_batch()) == [2, 2]


# Encoder or decoder


def test_an_encoder_is_told_by_what_its_tokens_see(encoder, tmp_path):
    looks_both_ways = hooked_cfg(attention_dir="bidirectional")
    hooked_encoder = HookedEncoder(looks_both_ways)
    for weight in hooked_encoder.parameters():  # which it leaves as they are in memory
        torch.nn.init.normal_(weight)

    assert is_encoder_model(encoder)
    assert is_encoder_model(HookedTransformer(looks_both_ways))
    assert is_encoder_model(hooked_encoder)
    assert not is_encoder_model(HookedTransformer(hooked_cfg()))
    assert not is_encoder_model(make_model())
    assert not is_encoder_model(make_bridge(tmp_path))
