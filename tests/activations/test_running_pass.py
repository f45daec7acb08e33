"""``attached`` takes the special tokens of the sequence that runs, however it came to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bae_lens.attach import attached
from tests.attach.test_attach import (
    EOS,
    PAD,
    SPECIAL,
    Model,
    across_by_hand,
    by_hand,
    crossing,
    hook_after,
    hook_of,
    sae_for,
)
from tests.helpers import make_bridge, make_model, make_tokens

GREEDY: dict[str, Any] = {"do_sample": False, "verbose": False, "stop_at_eos": False}


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def tokens() -> Tensor:
    tokens = make_tokens(3, 12)
    tokens[0, 5] = EOS
    tokens[1, 9:] = PAD
    return tokens


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def last_logits(model: Model, prompt: Any, **kwargs: Any) -> tuple[Tensor, list[Tensor]]:
    """The sequences that a model generates, and the logits of each step."""
    said: list[Tensor] = []
    handle = model.unembed.register_forward_hook(lambda module, x, y: said.append(y[:, -1]))
    try:
        written: Any = model.generate(prompt, **{**GREEDY, "return_type": "tokens", **kwargs})
    finally:
        handle.remove()
    return written, said


def needs_cache(model: Model) -> None:
    """Skip where the model itself says something else with a key-value cache than without.

    The attention of a TransformerBridge (TransformerLens 3.9) never sees the cache of transformers
    5.24, which has another name.
    """
    written, said = last_logits(model, make_tokens(2, 5), max_new_tokens=2)
    if not torch.allclose(said[1], model(written[:, :6])[:, -1], atol=1e-4):
        pytest.skip("This TransformerBridge does not read its cache.")


# Generation


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_is_what_passes_over_the_whole_text_give(model, use_past_kv_cache):
    if use_past_kv_cache:
        needs_cache(model)
    sae = sae_for(model)
    prompt = make_tokens(2, 5)
    prompt[1, 3] = EOS

    with attached(model, sae):
        written, said = last_logits(
            model, prompt, max_new_tokens=4, use_past_kv_cache=use_past_kv_cache
        )

    assert len(said) == 4
    for n, logits in enumerate(said, prompt.shape[1]):
        torch.testing.assert_close(logits, by_hand(model, sae, written[:, :n])[:, -1])


def test_special_tokens_that_are_generated_pass_by(model):
    # Any token may be called special: those that were just written, for instance.
    sae, prompt = sae_for(model), make_tokens(2, 5)
    written = model.generate(prompt, max_new_tokens=1, **GREEDY)
    special = [0, *written[:, -1].tolist()]

    with attached(model, sae, exclude_special_tokens=special):
        written, said = last_logits(model, prompt, max_new_tokens=4, use_past_kv_cache=False)

    for n, logits in enumerate(said, prompt.shape[1]):
        torch.testing.assert_close(logits, by_hand(model, sae, written[:, :n], special)[:, -1])


def test_with_a_cache_the_mask_is_of_the_new_tokens(model):
    # Whatever the model makes of its cache: the same as by hand, hook for hook.
    sae, prompt = sae_for(model), make_tokens(2, 5)
    seen: list[Tensor] = []

    def replace(acts: Tensor, hook: Any) -> Tensor:
        seen.append(acts)
        is_first = len(seen) == 1
        special = prompt == 0 if is_first else torch.zeros(acts.shape[:2], dtype=torch.bool)
        return torch.where(special[..., None], acts, sae(acts))

    settings: dict[str, Any] = {"max_new_tokens": 3, "use_past_kv_cache": True}
    with model.hooks(fwd_hooks=[(hook_of(model), replace)]):
        expected, expected_said = last_logits(model, prompt, **settings)
    assert not torch.isin(expected[:, 1:], torch.tensor(SPECIAL)).any()

    with attached(model, sae):
        written, said = last_logits(model, prompt, **settings)

    assert [acts.shape[1] for acts in seen] == [5, 1, 1]
    assert torch.equal(written, expected)
    torch.testing.assert_close(said, expected_said)


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_from_texts_of_different_lengths(model, use_past_kv_cache):
    # Padded on the left, which the mask has to follow.
    sae = sae_for(model)
    texts = ["word1", "word2 word3 word4 word5"]
    settings: dict[str, Any] = {"max_new_tokens": 3, "use_past_kv_cache": use_past_kv_cache}

    with attached(model, sae):
        both, _ = last_logits(model, texts, **settings)
        alone = [last_logits(model, [text], **settings)[0] for text in texts]

    for row, one in zip(both, alone, strict=True):
        torch.testing.assert_close(row[-one.shape[1] :], one[0])


@pytest.mark.parametrize("kind", ["bae", "transformer"])
def test_texts_that_are_padded_on_the_left(model, kind):
    texts = ["word1", "word2 word3 word4 word5"]
    sae = sae_for(model) if kind == "bae" else crossing(model, kind)

    with attached(model, sae):
        both = model(texts, padding_side="left")
        alone = [model(text) for text in texts]

    for row, one in zip(both, alone, strict=True):
        torch.testing.assert_close(row[-one.shape[1] :], one[0])


def test_a_stream_of_generated_tokens():
    model, prompt = make_model(), make_tokens(2, 5)
    sae = sae_for(model)

    with attached(model, sae):
        stream: Any = model.generate_stream(
            prompt, 4, max_tokens_per_yield=1, use_past_kv_cache=False, **GREEDY
        )
        parts = list(stream)
        written = model.generate(prompt, max_new_tokens=4, use_past_kv_cache=False, **GREEDY)

    torch.testing.assert_close(torch.cat(parts, 1), written)


def test_generation_from_the_embedding(tmp_path):
    # generate passes hook_embed by, and the SAE would seem to change nothing.
    model, prompt = make_model(), make_tokens(2, 5)
    sae = sae_for(model)
    sae.cfg.metadata.hook_name = "hook_embed"
    special = torch.isin(prompt, torch.tensor(SPECIAL))[..., None]

    def replace(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(special, acts, sae(acts))

    expected = model.run_with_hooks(prompt, fwd_hooks=[("hook_embed", replace)])

    with attached(model, sae):
        torch.testing.assert_close(model(prompt), expected)
        stream: Any = model.generate_stream(prompt, 2, **GREEDY)
        written = torch.cat(list(stream), 1)
        with pytest.raises(ValueError, match=r"does not pass 'hook_embed'.*generate_stream"):
            model.generate(prompt, max_new_tokens=2, **GREEDY)

    assert torch.equal(written[:, 5], expected[:, -1].argmax(-1))


def test_generation_by_transformers_itself(tmp_path):
    bridge, prompt = make_bridge(tmp_path), make_tokens(2, 5)
    sae = sae_for(bridge)
    settings = {"do_sample": False, "use_cache": False, "eos_token_id": -1, "pad_token_id": PAD}

    with attached(bridge, sae):
        written = bridge.original_model.generate(prompt, max_new_tokens=4, **settings)  # pyright: ignore

    for n in range(5, 9):
        expected = by_hand(bridge, sae, written[:, :n])[:, -1].argmax(-1)
        assert torch.equal(written[:, n], expected)


def test_a_decoder_of_sequences_generates_without_a_cache(model):
    sae, prompt = crossing(model, "transformer"), make_tokens(2, 5)

    with attached(model, sae):
        written, said = last_logits(model, prompt, max_new_tokens=4, use_past_kv_cache=False)

    for n, logits in enumerate(said, prompt.shape[1]):
        torch.testing.assert_close(logits, across_by_hand(model, sae, written[:, :n])[:, -1])


@pytest.mark.parametrize("special", [True, False])
def test_a_decoder_of_sequences_refuses_a_cache_that_hides_the_text(model, special):
    # It would take every new token for a text of its own.
    sae, prompt = crossing(model, "transformer"), make_tokens(2, 5)

    with (
        pytest.raises(ValueError, match="use_past_kv_cache=False"),
        attached(model, sae, exclude_special_tokens=special),
    ):
        model.generate(prompt, max_new_tokens=4, use_past_kv_cache=True, **GREEDY)


def test_a_decoder_of_tokens_generates_with_a_cache(model):
    needs_cache(model)
    sae, prompt = crossing(model, "token"), make_tokens(2, 5)

    with attached(model, sae):
        written, said = last_logits(model, prompt, max_new_tokens=3, use_past_kv_cache=True)

    for n, logits in enumerate(said, prompt.shape[1]):
        torch.testing.assert_close(logits, across_by_hand(model, sae, written[:, :n])[:, -1])


# Passes that begin with activations


def test_activations_with_their_tokens(tokens):
    model = make_model()
    sae = sae_for(model)
    _, cache = model.run_with_cache(tokens)
    expected = by_hand(model, sae, tokens)

    with attached(model, sae):
        logits = model(cache["blocks.0.hook_resid_pre"], start_at_layer=0, tokens=tokens)
        one = model(cache["blocks.0.hook_resid_pre"][:1], start_at_layer=0, tokens=tokens[0])
        above = model(cache["blocks.1.hook_resid_pre"], start_at_layer=1)

    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(one, expected[:1])
    # The SAE is not on its way.
    torch.testing.assert_close(above, model(tokens))


def test_activations_without_their_tokens():
    model = make_model()
    sae, tokens = sae_for(model), make_tokens(3, 10)
    _, cache = model.run_with_cache(tokens)
    x = cache["blocks.0.hook_resid_pre"]
    everywhere = by_hand(model, sae, tokens, ())

    def fail(acts: Tensor, hook: Any) -> None:
        raise KeyError("mine")

    with attached(model, sae):
        model(tokens)
        with pytest.raises(ValueError, match="tokens beside start_at_layer"):
            model(x, start_at_layer=0)
        # Nothing is left of a pass that never came to the SAE, or of one that an exception ended.
        model(tokens, stop_at_layer=0)
        with pytest.raises(KeyError, match="mine"):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", fail)])
        with pytest.raises(ValueError, match="tokens beside start_at_layer"):
            model(x, start_at_layer=0)
        with pytest.raises(ValueError, match=r"tokens have shape \(3, 9\)"):
            model(x, start_at_layer=0, tokens=tokens[:, 1:])
    with attached(model, sae, exclude_special_tokens=False):
        torch.testing.assert_close(model(x, start_at_layer=0), everywhere)


def test_what_was_read_in_a_pass_is_not_written_in_the_next():
    model = make_model()
    sae, tokens = crossing(model), make_tokens(3, 10)
    _, cache = model.run_with_cache(tokens)

    with attached(model, sae):
        model(tokens, stop_at_layer=1)  # Reads, and never comes to write.
        with pytest.raises(ValueError, match="without having passed"):
            model(cache["blocks.1.hook_resid_pre"], start_at_layer=1, tokens=tokens)


def test_embeddings_do_not_say_which_tokens_they_are_of(model):
    sae, tokens = sae_for(model), make_tokens(2, 5)
    embeddings = model.embed(tokens)
    settings: dict[str, Any] = {"max_new_tokens": 2, "return_type": "tokens", **GREEDY}
    clean = model.generate(embeddings, **settings)

    with attached(model, sae):
        model(tokens)
        with pytest.raises(ValueError, match="without token ids"):
            model.generate(embeddings, **settings)
    with attached(model, sae, exclude_special_tokens=False):
        everywhere = model.generate(embeddings, **settings)

    assert everywhere.shape == clean.shape
    assert torch.equal(everywhere[:, 0], by_hand(model, sae, tokens, ())[:, -1].argmax(-1))


def test_embeddings_given_to_a_bridge(tmp_path):
    bridge, tokens = make_bridge(tmp_path), make_tokens(2, 5)
    sae = sae_for(bridge)
    embeddings = bridge.embed(tokens)
    expected = by_hand(bridge, sae, tokens, ())

    with attached(bridge, sae):
        bridge(tokens)
        with pytest.raises(ValueError, match="without token ids"):
            bridge(embeddings)
    with attached(bridge, sae, exclude_special_tokens=False):
        torch.testing.assert_close(bridge(embeddings), expected)


# Other passes and embeddings between


def test_a_hook_that_embeds_something_else(model, tokens):
    sae, other = sae_for(model), make_tokens(3, 12, seed=7)
    expected = by_hand(model, sae, tokens)

    def embed(acts: Tensor, hook: Any) -> None:
        model.embed(other)

    before = hook_of(model).replace("out", "in").replace("resid_post", "resid_pre")
    with attached(model, sae):
        logits = model.run_with_hooks(tokens, fwd_hooks=[(before, embed)])

    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("kind", ["bae", "transformer"])
def test_a_hook_that_runs_the_model_on_something_else(model, tokens, kind):
    if kind == "bae":
        sae = sae_for(model)
        expected = by_hand(model, sae, tokens)
    else:
        sae = crossing(model, kind)
        expected = across_by_hand(model, sae, tokens)
    other, inside = make_tokens(2, 7, seed=7), []

    def run(acts: Tensor, hook: Any) -> None:
        if not inside:
            inside.append(None)
            inside.append(model(other))

    with attached(model, sae):
        alone = model(other)
        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_after(model), run)])

    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(inside[1], alone)


def test_one_inside_another_that_generates(model):
    first, second, prompt = sae_for(model), crossing(model, "transformer"), make_tokens(2, 5)
    settings: dict[str, Any] = {"max_new_tokens": 3, "use_past_kv_cache": False}

    with attached(model, first), attached(model, second):
        written, said = last_logits(model, prompt, **settings)
        expected = [model(written[:, :n])[:, -1] for n in range(5, 8)]

    torch.testing.assert_close(said, expected)
    assert not {"forward", "generate"} & vars(model).keys()


def test_the_methods_of_the_model_are_its_own_again(model, tokens):
    owner = model if not hasattr(model, "original_model") else model.original_model
    before = dict(vars(owner))

    with attached(model, sae_for(model)):
        assert vars(owner)["forward"] is not before.get("forward")

    assert vars(owner).get("forward") is before.get("forward")
    assert vars(owner).get("generate") is before.get("generate")
