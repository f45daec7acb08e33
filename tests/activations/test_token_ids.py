"""Token ids in the place of texts, and texts that are longer than a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bae_lens import TrainingRunner, task_vector, usual_strengths
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.token_ids import check_token_ids, context_of, sequence_of
from bae_lens.evals import replacement_divergences
from tests.attach.test_attach import hook_of
from tests.helpers import (
    CONTEXT_SIZE,
    between,
    cross_layer_cfg,
    make_bae,
    make_bridge,
    make_model,
    make_neox_bridge,
    make_text,
    make_tokens,
    runner_cfg,
)

N_CTX = 2 * CONTEXT_SIZE


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def sae(model: Any) -> Any:
    own = between(make_bae(n_levels=3), hook_of(model), hook_out=None)
    own.cfg.metadata.context_size = None
    return own


BAD: list[tuple[torch.Tensor, str]] = [
    (make_tokens(1, N_CTX + 1)[0], rf"has {N_CTX + 1} tokens, and the model reads {N_CTX} at most"),
    (torch.tensor([4, 500]), "has the token id 500, and the model's are 0 to 43"),
    (torch.tensor([4, -1]), "has the token id -1, and the model's are 0 to 43"),
    (torch.tensor([4.0, 5.0]), r"whole numbers of shape \[length\]; got torch.float32 of shape \[2\]"),
    (torch.tensor([True]), r"got torch.bool"),
    (torch.tensor(4), r"of shape \[\]"),
    (torch.zeros(0, dtype=torch.long), "has no token"),
]  # fmt: skip


@pytest.mark.parametrize(("tokens", "said"), BAD)
def test_what_a_model_cannot_read_is_said_with_its_place(
    model: Any, sae: Any, tokens: torch.Tensor, said: str
) -> None:
    good = torch.tensor([0, 5, 6])
    with pytest.raises(ValueError, match=rf"Text 1 .*{said}"):
        usual_strengths(model, sae, [good, tokens])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=rf"Text 1 .*{said}"):
        replacement_divergences(model, sae, [good, tokens])
    with pytest.raises(ValueError, match=rf"Prompt 1 of without .*{said}"):
        task_vector(model, sae, [good, good + 1], [good, tokens])


def test_what_a_model_can_read_is_read(model: Any) -> None:
    longest = make_tokens(1, N_CTX)[0]
    assert check_token_ids(model, longest.int(), "It").equal(longest)
    assert sequence_of(model, "word1 word2", "It").equal(model.to_tokens("word1 word2")[0])
    assert context_of(model) == N_CTX
    model.cfg.n_ctx = None
    assert context_of(model) is None
    assert len(check_token_ids(model, longest.repeat(2), "It")) == 2 * N_CTX


def test_padding_before_a_text_is_not_read_as_text(model: Any, sae: Any) -> None:
    texts = ["word1 word2 word3", "word4 word5"]
    left = model.to_tokens(texts, padding_side="left")
    right = model.to_tokens(texts, padding_side="right")
    said = rf"begins with padding \(1 × token {left[1, 0].item()}\).* without padding"
    for read in (usual_strengths, replacement_divergences):
        with pytest.raises(ValueError, match=rf"Text 1 {said}"):
            read(model, sae, left)
    with pytest.raises(ValueError, match=rf"Prompt 1 of without {said}"):
        task_vector(model, sae, texts, left)
    # After it padding is special, and is not read by what comes before.
    of_texts = usual_strengths(model, sae, texts)
    torch.testing.assert_close(usual_strengths(model, sae, right), of_texts, equal_nan=True)
    # A text may itself begin so.
    pad = model.tokenizer.pad_token
    assert sequence_of(model, f"{pad} {pad} word1", "It").tolist().count(left[1, 0]) == 2


def test_token_ids_have_a_row_a_text(model: Any, sae: Any) -> None:
    for tokens in (make_tokens(1, 5)[0], torch.tensor(3), torch.rand(2, 3, 16)):
        with pytest.raises(ValueError, match=r"Token ids must have the shape \[batch, pos\]"):
            usual_strengths(model, sae, tokens)
    for texts, said in (
        (None, "texts must be a list of texts, or token ids; got None"),
        ([4, 5], "Text 0 has to be a string; got 4"),
    ):
        with pytest.raises(ValueError, match=said):
            usual_strengths(model, sae, texts)  # pyright: ignore[reportArgumentType]


def test_texts_are_cut_before_they_are_too_long(model: Any, sae: Any) -> None:
    tokens, long = make_tokens(2, N_CTX + 9), "word1 word2 " * N_CTX
    assert replacement_divergences(model, sae, tokens, context_size=N_CTX).n_texts == 2
    assert replacement_divergences(model, sae, [long]).n_texts == 1
    usual_strengths(model, sae, [long])
    # The last token of a prompt is what is read of it.
    with pytest.raises(ValueError, match=r"Prompt 0 of with_demonstrations has .* tokens"):
        task_vector(model, sae, [long], ["word1"])


def test_contexts_that_are_longer_than_the_model_reads(
    model: Any, sae: Any, tmp_path: Path
) -> None:
    sae.cfg.metadata.context_size = N_CTX + 1
    said = rf"context_size is {N_CTX + 1}, and the model reads {N_CTX} tokens at most"
    with pytest.raises(ValueError, match=said):
        held_out_store(sae, model, make_text())
    cfg = runner_cfg(tmp_path / "run", context_size=N_CTX + 1, hook_name=hook_of(model))
    with pytest.raises(ValueError, match=said):
        TrainingRunner(cfg, make_text(), model)


def test_a_bridge_with_rotary_positions_reads_on(tmp_path: Path) -> None:
    """What its config has as context is no limit there."""
    bridge = make_neox_bridge(tmp_path)
    n_ctx = bridge.cfg.n_ctx
    tokens = make_tokens(2, n_ctx + 9)
    assert bridge(tokens).isfinite().all()
    assert context_of(bridge) is None
    check_token_ids(bridge, tokens[0], "It")
    learned = make_bridge(tmp_path / "learned")
    assert context_of(learned) == learned.cfg.n_ctx


def test_so_are_they_at_two_hook_points(tmp_path: Path) -> None:
    from bae_lens import CrossLayerTrainingRunner

    cfg = cross_layer_cfg(tmp_path, context_size=N_CTX + 1)
    with pytest.raises(ValueError, match=f"context_size is {N_CTX + 1}, and the model reads"):
        CrossLayerTrainingRunner(cfg, make_text(), make_model())
