"""Passes with edits: what they reach, what they leave alone, and what is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer
from torch import Tensor

from bae_lens.activations.text_batch import TextBatch
from bae_lens.concept_ablation import passes as module
from bae_lens.concept_ablation.passes import Reader, check_hooks, frozen, pool, run_edited
from bae_lens.concept_ablation.texts import encode_texts
from tests.concept_ablation.helpers import (
    LOWER_HOOK,
    SPECIAL,
    UPPER_HOOK,
    make_model,
    make_reader,
    make_rows,
    noise,
)
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    HOOK_OUT,
    SINK,
    make_bridge,
    make_headless_encoder,
    make_sinking_model,
)

HOOKS = (LOWER_HOOK, UPPER_HOOK)
BRIDGE_HOOKS = ("blocks.0.hook_out", "blocks.1.hook_out")
TEXTS = [row["text"] for row in make_rows(10)]
WORDS = ["word1 word2 word3", "word4", "word5 word6"]


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_model(n_layers=3)


@pytest.fixture(scope="module", params=["hooked", "bridge", "encoder"])
def reader(request, tmp_path_factory) -> Reader:
    if request.param == "hooked":
        return make_reader()
    bridge = request.param == "bridge"
    model = make_bridge(tmp_path_factory.mktemp("gpt2")) if bridge else make_headless_encoder()
    return make_reader(model, WORDS, BRIDGE_HOOKS, "last" if bridge else "first")


# A pass


def test_unedited_it_is_the_models(reader):
    for batch in reader.batches(""):
        seen = reader.run(batch)
        for row, i in enumerate(batch.examples.tolist()):
            n = int(reader.texts.attention_mask[i].sum())
            tokens = reader.texts.tokens[i : i + 1, :n]
            _, cache = reader.model.run_with_cache(tokens)  # pyright: ignore[reportAttributeAccessIssue]
            for acts, hook in zip(seen[:2], reader.hook_names, strict=True):
                torch.testing.assert_close(acts[row, :n], cache[hook][0], atol=1e-5, rtol=1e-4)
        assert seen.logits is None


def test_an_edit_is_what_the_upper_layers_go_on_from(model):
    tokens = model.to_tokens(TEXTS[0])
    new = noise(*tokens.shape, model.cfg.d_model)

    seen = run_edited(model, TextBatch.of(tokens), HOOKS, lambda _: new, logits_at="all")

    expected = model.blocks[1](new)
    torch.testing.assert_close(seen.lower, new)
    torch.testing.assert_close(seen.upper, expected)
    last = model.blocks[2](expected)
    torch.testing.assert_close(seen.logits, model.unembed(model.ln_final(last)))


def test_an_edit_of_some_examples_leaves_the_others_alone(reader):
    batch = next(iter(reader.batches("")))
    which = torch.arange(len(batch.examples)) == 1

    def edit(acts: Tensor) -> Tensor:
        return torch.where(which[:, None, None], acts + 1, acts)

    plain, edited = reader.run(batch), reader.run(batch, edit)

    changed = [(a - b).abs().amax((1, 2)) for a, b in zip(plain[:2], edited[:2], strict=True)]
    for change in changed:
        assert change[which].min() > 1e-2
        assert change[~which].max() < 1e-5


def test_a_decoders_earlier_positions_do_not_see_the_edit():
    reader = make_reader()
    batch = next(iter(reader.batches("")))

    def edit(acts: Tensor) -> Tensor:
        return acts + torch.eye(acts.shape[1])[3][:, None]

    change = (reader.run(batch).upper - reader.run(batch, edit).upper).abs().amax(-1)
    assert change[:, :3].max() == 0
    assert change[:, 3:].min() > 0


def test_logits_at_one_position_are_those_of_all(reader):
    for batch in reader.batches(""):
        every = reader.run(batch, lambda acts: acts + 1, "all").logits
        one = reader.run(batch, lambda acts: acts + 1, batch.position).logits
        rows = torch.arange(len(batch.examples))
        torch.testing.assert_close(one, every[rows, batch.position][:, None])


def test_lower_and_upper_may_be_the_same_hook(model):
    text = TextBatch.of(model.to_tokens(TEXTS[0]))

    seen = run_edited(model, text, (LOWER_HOOK, LOWER_HOOK), lambda acts: acts + 1)

    torch.testing.assert_close(seen.lower, seen.upper)
    plain = model.run_with_cache(text.tokens)[1][LOWER_HOOK]
    torch.testing.assert_close(seen.upper, plain + 1)


def test_layers_above_the_upper_hook_are_not_run_unless_logits_are_asked_for(model):
    text = TextBatch.of(model.to_tokens(TEXTS[0]))

    def fail(acts: Tensor, hook: Any) -> None:
        raise AssertionError(f"{hook.name} was run")

    with model.hooks([("blocks.2.hook_resid_pre", fail)]):
        assert run_edited(model, text, HOOKS).logits is None
        with pytest.raises(AssertionError, match=r"blocks\.2"):
            run_edited(model, text, HOOKS, logits_at="all")


def test_no_hook_is_left_behind_even_after_an_error(model):
    text = TextBatch.of(model.to_tokens(TEXTS[0]))

    run_edited(model, text, HOOKS, lambda acts: 0 * acts)
    with pytest.raises(RuntimeError):
        run_edited(model, text, HOOKS, lambda acts: acts @ noise(3, 3))

    assert all(not point.fwd_hooks for point in model.hook_dict.values())
    clean = model.run_with_cache(text.tokens)[1][UPPER_HOOK]
    torch.testing.assert_close(run_edited(model, text, HOOKS).upper, clean)


def test_gradients_flow_back_to_what_an_edit_returned(model):
    text = TextBatch.of(model.to_tokens(TEXTS[0]))
    x = noise(*text.tokens.shape, model.cfg.d_model).requires_grad_()

    upper = run_edited(model, text, HOOKS, lambda _: x).upper

    (gradient,) = torch.autograd.grad(upper.square().sum(), x)
    assert gradient.abs().amax(-1).min() > 0


def test_the_models_arguments_are_passed_on():
    encoder = make_reader(make_headless_encoder(), WORDS, BRIDGE_HOOKS, "first")
    batch = next(iter(encoder.batches("")))
    # An encoder's tokens see padding if they are told to.
    everything = {"attention_mask": torch.ones_like(batch.text.tokens)}
    told = Reader(encoder.model, encoder.texts, BRIDGE_HOOKS, "first", model_kwargs=everything)

    change = (encoder.run(batch).upper - told.run(batch).upper).abs().amax((1, 2))

    is_padded = ~batch.text.attention_mask.all(1)  # pyright: ignore[reportOptionalMemberAccess]
    assert change[is_padded].min() > 1e-2
    assert change[~is_padded].max() < 1e-5


def test_hooks_are_checked_by_name(model, tmp_path):
    check_hooks(model, HOOKS)
    with pytest.raises(ValueError, match=r"no hook point 'blocks.9.hook_resid_post'.*Did you mean"):
        check_hooks(model, (LOWER_HOOK, "blocks.9.hook_resid_post"))
    bridge: Any = make_bridge(tmp_path)
    check_hooks(bridge, BRIDGE_HOOKS)
    with pytest.raises(ValueError, match=r"SAETransformerBridge has no .* mean blocks.0.hook_out"):
        check_hooks(bridge, HOOKS)


@pytest.mark.parametrize(
    "hook_names", [("blocks.0.attn.hook_z", UPPER_HOOK), (LOWER_HOOK, "blocks.1.attn.hook_z")]
)
def test_a_hook_of_single_heads_is_refused(model, hook_names):
    reader = make_reader(model, hook_names=hook_names)
    with pytest.raises(ValueError, match=r"'blocks.\d.attn.hook_z' have the shape .*into heads"):
        reader.run(next(iter(reader.batches(""))))


def test_a_hook_that_does_not_fire_is_refused(model):
    silent = "blocks.1.attn.hook_result"  # only with use_attn_result
    with pytest.raises(ValueError, match=f"{silent!r} does not fire"):
        run_edited(model, TextBatch.of(model.to_tokens("good")), (LOWER_HOOK, silent))


def test_frozen_parameters_ask_for_gradients_again(model):
    parameters = list(model.parameters())
    parameters[1].requires_grad_(False)

    with frozen(model):
        assert not any(p.requires_grad for p in parameters)

    assert [p.requires_grad for p in parameters] == [i != 1 for i in range(len(parameters))]
    parameters[1].requires_grad_(True)


# Passes that go on from the lower hook point


@pytest.mark.parametrize(
    "hook_names",
    [
        HOOKS,
        (LOWER_HOOK, LOWER_HOOK),
        ("blocks.0.hook_mlp_out", UPPER_HOOK),
        (LOWER_HOOK, "ln_final.hook_normalized"),
    ],
)
@pytest.mark.parametrize("logits_at", [None, "all"])
@pytest.mark.parametrize("max_kept", [0, 2**30])
def test_a_reader_sees_what_whole_passes_do(monkeypatch, hook_names, logits_at, max_kept):
    monkeypatch.setattr(module, "_MAX_KEPT", max_kept)
    model = make_model(n_layers=3)
    reader = make_reader(model, hook_names=hook_names)

    for _ in range(2):
        for batch in reader.batches(""):
            for edit in (None, lambda acts: acts * 0.5 + 1):
                whole = run_edited(model, batch.text, hook_names, edit, logits_at)
                seen = reader.run(batch, edit, logits_at)
                for own, expected in zip(seen, whole, strict=True):
                    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_layers_below_the_lower_hook_run_once_a_batch(model):
    reader = make_reader(model)
    runs: list[str] = []

    with model.hooks([("blocks.0.hook_resid_pre", lambda acts, hook: runs.append(hook.name))]):
        for _ in range(3):
            for batch in reader.batches(""):
                reader.run(batch, lambda acts: acts + 1)

    assert len(runs) == len(list(reader.batches("")))


# What is read


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("readout", ["last", "first", "mean"])
def test_batches_have_every_text_once_and_no_column_of_padding(readout, batch_size):
    reader = make_reader(readout=readout, batch_size=batch_size)

    batches = list(reader.batches(""))

    assert len(reader) == len(TEXTS)
    assert sorted(torch.cat([b.examples for b in batches]).tolist()) == [*range(len(TEXTS))]
    for batch in batches:
        mask = batch.text.attention_mask
        assert mask is not None
        assert len(batch.examples) <= batch_size
        assert mask.any(0).all()
        assert torch.equal(batch.text.tokens, reader.texts.tokens[batch.examples, : mask.shape[1]])


@pytest.mark.parametrize("readout", ["last", "first", "mean"])
def test_special_tokens_and_padding_are_not_valid(readout):
    reader = make_reader(texts=[*TEXTS, "good <eos> bad"], readout=readout)

    for batch in reader.batches(""):
        valid, mask = batch.text.valid, batch.text.attention_mask
        assert mask is not None
        assert torch.equal(valid, mask & (batch.text.tokens >= len(SPECIAL) - 1))
        assert not valid[:, 0].any()
        if readout == "mean":
            assert torch.equal(batch.read, valid)
        else:
            assert (batch.read.sum(1) == 1).all()
        assert torch.equal(batch.at, valid | batch.read)
        if readout == "first":
            assert batch.read[:, 0].all()
        if readout == "last":
            ends = mask.sum(1) - 1
            assert torch.equal(batch.read.int().argmax(1), ends)


def test_the_mean_is_over_what_is_read():
    acts = noise(2, 4, 5)
    read = torch.tensor([[True, False, True, False], [False] * 4])

    pooled = pool(acts, read)

    torch.testing.assert_close(pooled[0], (acts[0, 0] + acts[0, 2]) / 2)
    # Not zeros, which would be a vector.
    assert pooled[1].isnan().all()
    assert pool(acts.bfloat16(), read).dtype == torch.float32


def test_outliers_are_not_valid_and_are_counted():
    model = make_sinking_model()
    texts = [f"word{i} word{SINK - 4} word{i + 1} word3 word5" for i in range(6)]
    reader = Reader(
        model,  # pyright: ignore[reportArgumentType]
        encode_texts(model, texts, context_size=CONTEXT_SIZE, readout="last"),
        (HOOK, HOOK_OUT),
        "mean",
        batch_size=4,
    )
    without = reader.with_reference(10)
    assert without.outliers is not None
    assert set(without.outliers.reference_norms) == {HOOK, HOOK_OUT}
    for one, other in zip(reader.batches("a"), without.batches("b"), strict=True):
        is_sink = one.text.tokens == SINK
        assert is_sink.any()
        assert torch.equal(other.text.valid, one.text.valid & ~is_sink)
        assert torch.equal(other.read, one.read & ~is_sink)
        assert torch.equal(other.at, one.at & ~is_sink)
    assert without.n_outliers == 6
    assert reader.n_outliers == 0
