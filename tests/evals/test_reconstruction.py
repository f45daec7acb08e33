"""Mean-ablation cross-entropy, against the model's second half run by hand; whether there is any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformers import BertConfig, BertForMaskedLM

from bae_lens.activations.special_tokens import special_token_mask
from bae_lens.evals.reconstruction import mean_ablation_ce, predicts_next_token
from tests.helpers import (
    HOOK,
    make_bridge,
    make_headless_encoder,
    make_model,
    make_tokenizer,
    make_tokens,
)

BOS, EOS = 0, 1
SPECIAL = [BOS, EOS]
HOOK_Z = "blocks.0.attn.hook_z"


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_model()


@pytest.fixture
def batches() -> list[Tensor]:
    """Two batches of unequal size and length, with special tokens in the middle as well."""
    batches = [make_tokens(3, 12, seed=1), make_tokens(2, 9, seed=2)]
    batches[0][1, 5] = EOS
    batches[1][0, 7:] = EOS
    return batches


def second_half(model: HookedSAETransformer) -> Callable[[Tensor], Tensor]:
    """Logits from the residual after block 0."""
    return lambda resid: model(resid, start_at_layer=1, return_type="logits")


def from_z(model: HookedSAETransformer, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """Logits from the heads' outputs in block 0."""
    block = model.blocks[0]
    pre = model.run_with_cache(tokens)[1]["blocks.0.hook_resid_pre"]

    def logits(z: Tensor) -> Tensor:
        out = torch.einsum("bphd,hdm->bpm", z, block.attn.W_O) + block.attn.b_O
        mid = pre + out
        return second_half(model)(mid + block.mlp(block.ln2(mid)))

    return logits


@torch.no_grad()
def plain_ce(
    model: HookedSAETransformer,
    hook: str,
    batches: list[Tensor],
    special: list[int],
    head: int | None = None,
) -> float:
    """The same, position by position, without hooks."""
    acts = [model.run_with_cache(tokens)[1][hook] for tokens in batches]
    rows = [
        a[b, i]
        for tokens, a in zip(batches, acts, strict=True)
        for b in range(len(tokens))
        for i in range(tokens.shape[1])
        if tokens[b, i].item() not in special
    ]
    mean = torch.stack(rows).mean(0)
    losses = []
    for tokens, original in zip(batches, acts, strict=True):
        replaced = original.clone()
        for b in range(len(tokens)):
            for i in range(tokens.shape[1]):
                if tokens[b, i].item() in special:
                    continue
                if head is None:
                    replaced[b, i] = mean
                else:
                    replaced[b, i, head] = mean[head]
        go_on = second_half(model) if hook == HOOK else from_z(model, tokens)
        log_probs = go_on(replaced).log_softmax(-1)
        losses += [
            -log_probs[b, i, tokens[b, i + 1]]
            for b in range(len(tokens))
            for i in range(tokens.shape[1] - 1)
            if tokens[b, i].item() not in special
        ]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("special", [[], [BOS], SPECIAL])
@pytest.mark.parametrize("hook", [HOOK, HOOK_Z])
def test_it_equals_a_plain_reference(model, batches, hook, special):
    actual = mean_ablation_ce(model, hook, batches, special)

    assert actual == pytest.approx(plain_ce(model, hook, batches, special), rel=1e-5)


@pytest.mark.parametrize("head", [0, 1])
def test_one_head_alone(model, batches, head):
    actual = mean_ablation_ce(model, HOOK_Z, batches, SPECIAL, hook_head_index=head)

    assert actual == pytest.approx(plain_ce(model, HOOK_Z, batches, SPECIAL, head), rel=1e-5)
    assert actual != pytest.approx(mean_ablation_ce(model, HOOK_Z, batches, SPECIAL), rel=1e-3)


def test_it_is_a_baseline_of_its_own(model, batches):
    # What is tested above would also hold if all of these were equal.
    excluded = mean_ablation_ce(model, HOOK, batches, SPECIAL)
    everywhere = mean_ablation_ce(model, HOOK, batches)
    with torch.no_grad():
        clean = model(batches[0], return_type="loss").item()

    assert len({round(loss, 3) for loss in (excluded, everywhere, clean)}) == 3


def test_special_tokens_pass_by_unchanged_and_their_own_predictions_are_not_scored(model, batches):
    seen = {}

    def note(acts: Tensor, hook: Any) -> None:
        seen.setdefault("acts", []).append(acts.clone())

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", note)]):
        mean_ablation_ce(model, HOOK, batches[:1], SPECIAL)

    # The last run is the ablated one; the runs before it stopped at the hook.
    ablated = seen["acts"][-1]
    original = model.run_with_cache(batches[0])[1][HOOK]
    is_special = torch.isin(batches[0], torch.tensor(SPECIAL))
    torch.testing.assert_close(ablated[is_special], original[is_special])
    mean = original[~is_special].mean(0)
    torch.testing.assert_close(ablated[~is_special], mean.expand_as(ablated[~is_special]))


def test_batches_are_weighted_by_their_tokens(model):
    tokens = make_tokens(5, 10)

    together = mean_ablation_ce(model, HOOK, [tokens], SPECIAL)
    apart = mean_ablation_ce(model, HOOK, [tokens[:1], tokens[1:]], SPECIAL)

    assert together == pytest.approx(apart, rel=1e-5)


def test_it_leaves_no_hooks_behind(model, batches):
    before = model(batches[0])

    mean_ablation_ce(model, HOOK, batches, SPECIAL)

    assert torch.equal(model(batches[0]), before)


def test_a_bridge(tmp_path):
    bridge = make_bridge(tmp_path)
    tokens = make_tokens(4, 10)

    actual = mean_ablation_ce(bridge, "blocks.0.hook_out", [tokens], SPECIAL)  # pyright: ignore[reportArgumentType]

    with torch.no_grad():
        acts = bridge.run_with_cache(tokens)[1]["blocks.0.hook_out"]
        keep = torch.isin(tokens, torch.tensor(SPECIAL)).unsqueeze(-1)
        mean = acts[~keep.squeeze(-1)].mean(0)
        resid = torch.where(keep, acts, mean)
        # GPT-2's own second block and head, past the bridge's hooks.
        log_probs = bridge.run_with_hooks(
            tokens, fwd_hooks=[("blocks.1.hook_in", lambda acts, hook: resid)]
        ).log_softmax(-1)
    losses = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert actual == pytest.approx(losses[~keep[:, :-1, 0]].mean().item(), rel=1e-5)


def test_model_kwargs_reach_both_runs(model, batches, monkeypatch):
    seen = []
    forward = type(model).forward

    def spy(self, *args, **kwargs):
        seen.append(kwargs.get("padding_side"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spy)

    mean_ablation_ce(model, HOOK, batches[:1], SPECIAL, model_kwargs={"padding_side": "right"})

    assert seen == ["right", "right"]


@pytest.mark.parametrize(
    ("special", "expected"),
    [([], [[False, False, False]]), ([7], [[True, False, True]]), ((7, 3), [[True, True, True]])],
)
def test_special_token_mask(special, expected):
    assert special_token_mask(torch.tensor([[7, 3, 7]]), special).tolist() == expected


# Whether a model predicts the next token


def test_decoders_do(model, tmp_path):
    assert predicts_next_token(model)
    assert predicts_next_token(make_bridge(tmp_path))  # pyright: ignore[reportArgumentType]


def test_a_model_that_looks_ahead_does_not():
    cfg = {**make_model().cfg.to_dict(), "attention_dir": "bidirectional"}

    assert not predicts_next_token(HookedSAETransformer(HookedTransformerConfig.from_dict(cfg)))


def test_a_masked_language_model_does_not():
    # Its Bridge says "causal", and has logits over the vocabulary.
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 44, "hidden_size": 16, "intermediate_size": 32}
    bert = BertForMaskedLM(
        BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    )
    bert.set_attn_implementation("eager")
    bridge = SAETransformerBridge.boot_transformers(
        "tiny-bert", hf_model=bert.eval(), tokenizer=make_tokenizer(), device="cpu"
    )

    assert bridge(make_tokens(1, 4)).shape[-1] == 44
    assert not predicts_next_token(bridge)  # pyright: ignore[reportArgumentType]


def test_a_model_that_returns_its_hidden_states_does_not(model):
    class Headless(type(model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "stop_at_layer": 2})

    assert not predicts_next_token(make_headless_encoder())  # pyright: ignore[reportArgumentType]
    causal = Headless(model.cfg)
    assert causal(make_tokens(1, 4)).shape == (1, 4, 16)
    assert not predicts_next_token(causal)
