"""``steer`` and ``ablate_latents``: the activation kept, latents added, held and taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import SkipTranscoder, Transcoder, TranscoderConfig
from torch import Tensor
from transformer_lens import HookedTransformer

from bae_lens import ablate_latents, add_direction, attached, steer
from tests.attach.test_attach import Model, hook_after, hook_of, hook_out_of, is_bridge
from tests.conformance.cases import make_flipped_bae, make_topk
from tests.helpers import (
    D_IN,
    D_SAE,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_model,
    make_tokens,
    make_transcoder,
)

BOS, EOS = 0, 1
SPECIAL = torch.tensor([0, 1, 2])
GREEDY: Any = {"do_sample": False, "verbose": False, "stop_at_eos": False, "max_new_tokens": 6}


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def tokens() -> Tensor:
    tokens = make_tokens(3, 12)
    tokens[0, 5] = EOS
    return tokens


def _saelens(kind: Any, config: Any, **fields: Any) -> SAE[Any]:
    sae = kind(config(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False, **fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


MAKE = {
    "bits": make_flipped_bae,
    "levels and feedback": lambda: make_bae(n_levels=3, feedback_steps=2),
    "bits, layer norm": lambda: make_bae(
        normalize_activations="layer_norm", apply_b_dec_to_input=False
    ),
    "standard": lambda: _saelens(StandardSAE, StandardSAEConfig),
    "standard, norm": lambda: _saelens(
        StandardSAE, StandardSAEConfig, normalize_activations="constant_norm_rescale"
    ),
    "standard, layer norm": lambda: _saelens(
        StandardSAE, StandardSAEConfig, normalize_activations="layer_norm"
    ),
    "topk": lambda: _saelens(TopKSAE, TopKSAEConfig, k=8, rescale_acts_by_decoder_norm=True),
    "transcoder": lambda: make_topk(d_out=D_IN),
    "skip transcoder": lambda: make_transcoder(SkipTranscoder),
    # Which scales what it reads, and not what it writes.
    "transcoder, layer norm": lambda: _saelens(
        Transcoder, TranscoderConfig, d_out=D_IN, normalize_activations="layer_norm"
    ),
}
ELSEWHERE = {"transcoder", "skip transcoder", "transcoder, layer norm"}


def placed(sae: Any, model: Model, elsewhere: bool = False) -> Any:
    sae.cfg.metadata.hook_name = hook_of(model)
    sae.cfg.metadata.hook_name_out = hook_out_of(model) if elsewhere else None
    return sae


def fired(model: Model, sae: SAE[Any], tokens: Tensor, n: int = 2) -> list[int]:
    """Latents that fire at some tokens and not at others."""
    acts = model.run_with_cache(tokens)[1][hook_of(model)]
    code = sae.encode(acts)
    code = code if code.layout == torch.strided else code.to_dense()
    rate = (code != 0).float().flatten(0, 1).mean(0)
    return (rate - 0.4).abs().argsort()[:n].tolist()


def by_hand(model: Model, sae: SAE[Any], tokens: Tensor, change: Any) -> Tensor:
    """Logits with what the SAE decodes of a changed code, less what it decodes of its code, added."""
    metadata = sae.cfg.metadata
    reads, writes = metadata.hook_name, metadata.hook_name_out or metadata.hook_name
    keep = torch.isin(tokens, SPECIAL)[..., None]
    read: list[Tensor] = []

    def note(acts: Tensor, hook: Any) -> None:
        read.append(acts)

    def replace(acts: Tensor, hook: Any) -> Tensor:
        code = sae.encode(read[-1])
        code = code if code.layout == torch.strided else code.to_dense()
        # Each decoded by itself, right after an encode: SAELens' normalization is of the last one.
        old = sae.decode(code)
        sae.encode(read[-1])
        return torch.where(keep, acts, acts + sae.decode(change(code.clone())) - old)

    hooks: Any = [(reads, note), (writes, replace)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_is_what_the_sae_decodes_of_a_changed_code(model, tokens, name):
    sae = placed(MAKE[name](), model, name in ELSEWHERE)
    a, b = fired(model, sae, tokens)
    clean = model(tokens)

    def added(code: Tensor) -> Tensor:
        code[..., a] += 1.5
        code[..., b] -= 0.5
        return code

    def clamped(code: Tensor) -> Tensor:
        code[..., a], code[..., b] = 1.5, 0.0
        return code

    def ablated(code: Tensor) -> Tensor:
        code[..., [a, b]] = 0
        return code

    with steer(model, sae, {a: 1.5, b: -0.5}, raw=True) as steered:
        assert steered is model
        close(model(tokens), by_hand_of(clean, model, sae, tokens, added))
    with steer(model, sae, {a: 1.5, b: 0}, mode="clamp", raw=True):
        close(model(tokens), by_hand_of(clean, model, sae, tokens, clamped))
    with ablate_latents(model, sae, [a, b]):
        close(model(tokens), by_hand_of(clean, model, sae, tokens, ablated))
    assert torch.equal(model(tokens), clean)


def by_hand_of(clean: Tensor, model: Model, sae: SAE[Any], tokens: Tensor, change: Any) -> Tensor:
    """On a copy of the model, for this one is steered; it is not the clean model's output."""
    expected = by_hand(_COPIES[is_bridge(model)](), sae, tokens, change)
    assert (expected - clean).abs().max() > 1e-2
    return expected


@pytest.fixture(autouse=True)
def copies(tmp_path: Path) -> None:
    made: dict[bool, Model] = {}

    def copy(bridge: bool) -> Model:
        if bridge not in made:
            made[bridge] = make_bridge(tmp_path / "copy") if bridge else make_model()
        return made[bridge]

    _COPIES[True], _COPIES[False] = lambda: copy(True), lambda: copy(False)


_COPIES: dict[bool, Any] = {}


def test_strength_1_is_that_the_latent_is_on_as_usual(model, tokens):
    bits = placed(make_bae(), model)
    with steer(model, bits, {3: 2}):
        by_unit = model(tokens)
    with steer(model, bits, {3: 2 * bits.scale[3].item()}, raw=True):
        close(by_unit, model(tokens))
    levels = placed(make_bae(n_levels=3), model)
    for usual in ({3: 0.7}, torch.full((D_SAE,), 0.7), [0.7] * D_SAE):
        with steer(model, levels, {3: 2}, usual=usual):
            by_unit = model(tokens)
        with steer(model, levels, {3: 1.4}, raw=True):
            close(by_unit, model(tokens))


def test_special_tokens_are_left_alone_and_all_others_are_not(model, tokens):
    sae = placed(make_bae(), model)
    clean = model.run_with_cache(tokens)[1][hook_after(model)]
    with steer(model, sae, {3: 4}):
        # What is added inside sees the steered activation, at the hook point itself too.
        cache = model.run_with_cache(tokens)[1]
    row = 4 * sae.scale[3] * sae.W_dec[3]
    is_special = torch.isin(tokens, SPECIAL)
    for name in (hook_of(model), hook_after(model)):
        change = cache[name] - clean
        assert (change[is_special] == 0).all()
        close(change[~is_special], row.expand_as(change[~is_special]))
    with steer(model, sae, {3: 4}, exclude_special_tokens=False):
        change = model.run_with_cache(tokens)[1][hook_of(model)] - clean
    close(change, row.expand_as(change))


def test_where_ablated_latents_are_off_nothing_changes_at_all(model, tokens):
    sae = placed(make_bae(), model)
    [latent] = fired(model, sae, tokens, 1)
    before = model.run_with_cache(tokens)[1][hook_of(model)]
    on = (sae.encode(before)[..., latent] != 0) & ~torch.isin(tokens, SPECIAL)
    with ablate_latents(model, sae, [latent]):
        after = model.run_with_cache(tokens)[1][hook_of(model)]
    assert torch.equal(before[~on], after[~on])
    close((before - after)[on], (sae.scale[latent] * sae.W_dec[latent]).expand(int(on.sum()), -1))


@pytest.mark.parametrize("kind", ["add", "clamp", "ablate"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_with_and_without_cache_the_model_writes_the_same(model, kind, elsewhere):
    sae = placed(make_topk(d_out=D_IN) if elsewhere else make_bae(), model, elsewhere)
    prompt = make_tokens(2, 5)
    latents = fired(model, sae, prompt, 3)

    def within() -> Any:
        if kind == "ablate":
            return ablate_latents(model, sae, range(D_SAE))
        return steer(model, sae, dict.fromkeys(latents, 8.0), kind, raw=True)

    written: list[Any] = []
    for cache in (True, False):
        if cache and not reads_its_cache(model):
            continue
        with within(), torch.no_grad():
            new: Any = model.generate(
                prompt.clone(), use_past_kv_cache=cache, return_type="tokens", **GREEDY
            )
            # By hand: each token the largest logit of the steered model.
            logits = model(new[:, :-1])[:, 4:].argmax(-1)
        assert torch.equal(logits, new[:, 5:])
        written.append(new)
    assert all(torch.equal(new, written[0]) for new in written)
    clean: Any = model.generate(prompt, use_past_kv_cache=False, return_type="tokens", **GREEDY)
    assert not torch.equal(clean, written[0])


def reads_its_cache(model: Model) -> bool:
    """The attention of a TransformerBridge (TransformerLens 3.9) never sees the cache of transformers 5.24."""
    with torch.no_grad():
        new: Any = model.generate(
            make_tokens(2, 5), use_past_kv_cache=True, return_type="tokens", **GREEDY
        )
        return torch.equal(model(new[:, :-1])[:, 4:].argmax(-1), new[:, 5:])


@pytest.mark.parametrize("position", [-1, 4])
def test_at_one_position_nothing_else_is_touched(model, tokens, position):
    sae = placed(make_bae(), model)
    vector = torch.randn(D_IN, generator=torch.Generator().manual_seed(0))
    clean = model.run_with_cache(tokens)[1][hook_of(model)]
    [latent] = fired(model, sae, tokens, 1)
    acts = sae.scale[latent] * (sae.encode(clean)[..., latent, None] != 0)
    row = sae.W_dec[latent]
    expected = {
        "vector": vector.expand_as(clean),
        "added": (2 * sae.scale[latent] * row).expand_as(clean),
        "ablated": -acts * row,
    }
    contexts = {
        "vector": lambda at: add_direction(model, sae, vector, position=at),
        "added": lambda at: steer(model, sae, {latent: 2}, position=at),
        "ablated": lambda at: ablate_latents(model, sae, [latent], position=at),
    }
    for name, context in contexts.items():
        with context(position):
            change = model.run_with_cache(tokens)[1][hook_of(model)] - clean
        close(change[:, position], expected[name][:, position])
        change[:, position] = 0
        assert (change == 0).all()
    with add_direction(model, sae, vector):
        change = model.run_with_cache(tokens)[1][hook_of(model)] - clean
    is_special = torch.isin(tokens, SPECIAL)
    close(change[~is_special], vector.expand(int((~is_special).sum()), -1))
    assert (change[is_special] == 0).all()


def test_at_one_position_with_and_without_cache_the_model_writes_the_same(model):
    sae, prompt = placed(make_bae(), model), make_tokens(2, 5)
    vector = 8 * torch.randn(D_IN, generator=torch.Generator().manual_seed(3))
    new: dict[Any, Tensor] = {}
    settings: Any = {"return_type": "tokens", **GREEDY}
    with torch.no_grad():
        for cache in [False, *([True] if reads_its_cache(model) else [])]:
            settings["use_past_kv_cache"] = cache
            with add_direction(model, sae, vector, position=4):
                new[cache] = model.generate(prompt.clone(), **settings)
                by_hand = model(new[cache][:, :-1])[:, 4:].argmax(-1)
            assert torch.equal(by_hand, new[cache][:, 5:])
        clean: Any = model.generate(prompt.clone(), **settings)
        assert not torch.equal(clean, new[False])
        if True in new:
            assert torch.equal(new[True], new[False])
            # The end of the prompt is at the same place.
            with add_direction(model, sae, vector, position=-1):
                last: Any = model.generate(prompt.clone(), **settings)
            assert torch.equal(last, new[True])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", [-1, -2, 1, 2])
def test_a_position_is_that_of_each_text_whatever_its_length(model, side, position):
    sae, vector = placed(make_bae(), model), torch.full((D_IN,), 3.0)
    texts = ["word1 word2 word3 word4", "word5 word6", "word7 word8 word9"]
    tokens = model.to_tokens(texts, padding_side=side)
    alone = [model.to_tokens(text) for text in texts]
    assert len({row.shape[1] for row in alone}) == 3

    def change(of: Any, **settings: Any) -> Tensor:
        clean = model.run_with_cache(of, **settings)[1][hook_of(model)]
        with add_direction(model, sae, vector, position):
            return model.run_with_cache(of, **settings)[1][hook_of(model)] - clean

    batch = change(tokens, padding_side=side)
    assert int((batch != 0).any(-1).sum()) == len(texts)
    for row, own in zip(batch, alone, strict=True):
        n = own.shape[1]
        of_text = row[-n:] if side == "left" else row[:n]
        close(of_text, change(own)[0])
    with (
        pytest.raises(ValueError, match=r"is 3, and text 1 of those .* has 3 tokens"),
        add_direction(model, sae, vector, 3),
    ):
        model(tokens, padding_side=side)


def test_the_last_token_of_prompts_of_unequal_length_is_where_generation_begins(model):
    sae, vector = placed(make_bae(), model), 3 * make_bae().W_dec[3].detach()
    prompts = model.to_tokens(["word1 word2 word3 word4", "word5 word6"], padding_side="left")
    seen: list[Tensor] = []

    def note(acts: Tensor, hook: Any) -> None:
        seen.append(acts)

    settings: Any = {**GREEDY, "max_new_tokens": 1, "return_type": "tokens"}
    with model.hooks(fwd_hooks=[(hook_after(model), note)]), torch.no_grad():
        model.generate(prompts, **settings)
        with add_direction(model, sae, vector, -1):
            model.generate(prompts, **settings)
    clean, steered = seen
    changed = (clean - steered).abs().amax(-1) > 0.1
    assert changed.tolist() == [[False] * (clean.shape[1] - 1) + [True]] * 2


def test_contexts_may_end_in_any_order(model, tokens):
    one, other = placed(make_bae(), model), placed(make_bae(1), model)
    clean = model(tokens)
    with steer(model, other, {5: 2}):
        expected = model(tokens)
    outer, inner = steer(model, one, {3: 1}), steer(model, other, {5: 2})
    outer.__enter__()
    inner.__enter__()
    both = model(tokens)
    outer.__exit__(None, None, None)
    assert torch.equal(model(tokens), expected)
    assert not torch.equal(both, expected)
    inner.__exit__(None, None, None)
    assert torch.equal(model(tokens), clean)
    for owner in [model, getattr(model, "original_model", model)]:
        assert not {"forward", "generate"} & set(vars(owner))


def test_what_somebody_else_put_over_it_meanwhile_is_left(model, tokens):
    owner: Any = getattr(model, "original_model", model)
    clean = model(tokens)
    with steer(model, placed(make_bae(), model), {3: 1}):
        inner, calls = owner.forward, []

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

        owner.forward = counted
    assert torch.equal(model(tokens), clean)
    assert owner.forward is counted
    assert calls
    # And what was the model's own before.
    del owner.forward
    owner.forward = theirs = owner.forward
    with steer(model, placed(make_bae(), model), {3: 1}):
        pass
    assert vars(owner)["forward"] is theirs


def test_what_cannot_be_added_is_said(model, tokens):
    sae = placed(make_bae(), model)

    def refused(match: str, vector: Any, position: Any = None) -> None:
        with pytest.raises(ValueError, match=match), add_direction(model, sae, vector, position):
            model(tokens)

    refused(rf"shape \({D_IN},\); got \(3,\)", torch.ones(3))
    refused(r"got \[1.0\]", [1.0])
    refused("NaN or infinite", torch.full((D_IN,), float("inf")))
    refused("position must be", torch.ones(D_IN), 1.5)
    refused("is 12, and text 0 .* has 12 tokens", torch.ones(D_IN), 12)
    refused("is -13, and text 0 .* has 12 tokens", torch.ones(D_IN), -13)
    refused("Position 0 of text 0 is the special token 0", torch.ones(D_IN), 0)
    refused("Position 5 of text 0 is the special token 1", torch.ones(D_IN), 5)


def test_of_a_text_that_is_finished_the_last_token_is_left_as_it_is(model, caplog):
    """Without a cache −1 is the last token of each pass, which becomes EOS while another text goes on."""
    sae, prompt = placed(make_bae(), model), make_tokens(2, 5)
    vector = torch.full((D_IN,), 0.5)
    settings: Any = {**GREEDY, "return_type": "tokens", "use_past_kv_cache": False}

    def end_first_text(logits: Tensor, hook: Any) -> Tensor:
        logits[0, -1, EOS] = 100
        return logits

    with (
        model.hooks(fwd_hooks=[("unembed.hook_out", end_first_text)]),
        add_direction(model, sae, vector, position=-1),
        torch.no_grad(),
    ):
        written: Any = model.generate(prompt.clone(), **{**settings, "stop_at_eos": True})
    assert (written[0, 5:] == EOS).all()
    assert not (written[1, 5:] == EOS).any()
    # Its last token by hand, the other text's own.
    with torch.no_grad():
        for n in range(5, written.shape[1]):
            acts = model.run_with_cache(written[1:, :n])[1][hook_of(model)]
            changed = acts.clone()
            changed[:, -1] += vector
            hooks: Any = [(hook_of(model), lambda _acts, hook, changed=changed: changed)]
            logits: Any = model.run_with_hooks(written[1:, :n], fwd_hooks=hooks)
            assert logits[0, -1].argmax() == written[1, n]
    told = [r.getMessage() for r in caplog.records if "special token" in r.getMessage()]
    assert len(told) == 1
    assert "Position -1 of text 0 is the special token 1" in told[0]


def test_contexts_nest_and_add_up(model, tokens):
    one, other = placed(make_bae(), model), placed(make_bae(1), model)
    with steer(model, one, {3: 1}), steer(model, other, {5: 2}), steer(model, one, {4: -1}):
        nested = model.run_with_cache(tokens)[1][hook_of(model)]
    clean = model.run_with_cache(tokens)[1][hook_of(model)]
    rows = [sae.scale[:, None] * sae.W_dec for sae in (one, other)]
    expected = rows[0][3] + 2 * rows[1][5] - rows[0][4]
    is_special = torch.isin(tokens, SPECIAL)
    close((nested - clean)[~is_special], expected.expand(int((~is_special).sum()), -1))
    # A clamped latent reads what the context outside has made of the activation.
    with steer(model, one, {3: 9}), steer(model, one, {3: 0}, mode="clamp"):
        inner = model.run_with_cache(tokens)[1][hook_of(model)]
    left = one.encode(clean + 9 * rows[0][3])[..., 3:4] / one.scale[3]
    close(inner[~is_special], (clean + (9 - left) * rows[0][3])[~is_special])


@pytest.mark.parametrize("attached_first", [True, False])
def test_with_an_sae_attached_what_it_writes_is_steered(model, tokens, attached_first):
    sae = placed(make_bae(), model)
    with attached(model, sae):
        recons = model.run_with_cache(tokens)[1][hook_after(model)]
    orders = [lambda: attached(model, sae), lambda: steer(model, sae, {3: 2})]
    first, second = orders if attached_first else orders[::-1]
    with first(), second():
        steered = model.run_with_cache(tokens)[1][hook_after(model)]
    is_special = torch.isin(tokens, SPECIAL)
    row = 2 * sae.scale[3] * sae.W_dec[3]
    close((steered - recons)[~is_special], row.expand(int((~is_special).sum()), -1))


def test_everything_is_as_before_afterwards_also_after_an_exception(model, tokens):
    sae = placed(make_topk(d_out=D_IN), model, elsewhere=True)

    def hooks() -> list[int]:
        return [len(module._forward_hooks) for module in model.modules()]

    def stopped() -> None:
        with steer(model, sae, {3: 2}, "clamp", raw=True):
            model(tokens)
            assert hooks() != before
            raise RuntimeError("stopped")

    clean, before = model(tokens), hooks()
    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert hooks() == before
    assert torch.equal(model(tokens), clean)
    assert "forward" not in vars(model)
    # No hook of SAELens or TransformerLens takes it away before.
    with steer(model, sae, {3: 2}, raw=True):
        model.reset_hooks()
        model.run_with_hooks(tokens, fwd_hooks=[])
        assert (model(tokens) - clean).abs().max() > 1e-2


def test_gradients_flow_as_through_the_sum(model, tokens):
    sae = placed(_saelens(StandardSAE, StandardSAEConfig), model)
    [latent] = fired(model, sae, tokens, 1)
    is_special = torch.isin(tokens, SPECIAL)[..., None]
    gradients: list[Tensor] = []

    def leaf(acts: Tensor, hook: Any) -> Tensor:
        gradients.append(acts.detach().requires_grad_())
        return gradients[-1]

    def by_sum(acts: Tensor, hook: Any) -> Tensor:
        change = (2 - sae.encode(acts)[..., latent : latent + 1]) * sae.W_dec[latent].detach()
        return torch.where(is_special, acts, acts + change)

    hook = hook_of(model)
    # The leaf's hook stands before the steering one.
    model.add_hook(hook, leaf)
    with steer(model, sae, {latent: 2}, mode="clamp", raw=True):
        model(tokens).square().sum().backward()
    model.reset_hooks()
    model.run_with_hooks(tokens, fwd_hooks=[(hook, leaf), (hook, by_sum)]).square().sum().backward()
    first, second = (x.grad for x in gradients)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_codes_take_each_others_place(model, tokens):
    clean = model.run_with_cache(tokens)[1][hook_of(model)]
    sae = placed(fit_codes(make_clvq(decoder="token", d_out=D_IN), clean), model, elsewhere=True)
    writes = hook_out_of(model)
    clean_out = model.run_with_cache(tokens)[1][writes]
    codes = sae.encode(clean).argmax(-1)
    assert len(codes.unique()) > 2
    decoded, keep = sae.decode(sae.encode(clean)), torch.isin(tokens, SPECIAL)
    all_codes = sae.W_dec * sae.scale[:, None]
    close(decoded, all_codes[codes])

    def change() -> Tensor:
        return (model.run_with_cache(tokens)[1][writes] - clean_out)[~keep]

    with steer(model, sae, {2: 1}, mode="clamp"):
        close(change(), (all_codes[2] - decoded)[~keep])
    with steer(model, sae, {2: 1}):
        close(change(), (all_codes[2] - all_codes.mean(0)).expand_as(decoded[~keep]))
    ablated = int(codes.flatten().mode().values)
    with ablate_latents(model, sae, [ablated]):
        is_it = (codes == ablated)[~keep][:, None]
        close(change(), torch.where(is_it, all_codes.mean(0) - decoded[~keep], 0))


def test_heads_side_by_side_and_one_alone(model, tokens):
    name = "blocks.0.attn.o.hook_in" if is_bridge(model) else "blocks.0.attn.hook_z"
    clean = model.run_with_cache(tokens)[1][name]
    keep = torch.isin(tokens, SPECIAL)
    for reshapes in [False] if is_bridge(model) else [False, True]:
        sae = make_bae(reshape_activations="hook_z") if reshapes else make_bae()
        sae.cfg.metadata.hook_name = name
        if reshapes:
            sae.turn_on_forward_pass_hook_z_reshaping()
        with steer(model, sae, {3: 2}, mode="clamp"), steer(model, sae, {4: 1}):
            seen = model.run_with_cache(tokens)[1][name]
        with torch.no_grad():
            if reshapes:
                sae.turn_off_forward_pass_hook_z_reshaping()
            is_on = sae.encode(clean.flatten(2))[..., 3:4] / sae.scale[3]
        rows = sae.scale[:, None] * sae.W_dec
        expected = (2 - is_on) * rows[3] + rows[4]
        change = (seen - clean).flatten(2)
        close(change[~keep], expected[~keep])
        assert (change[keep] == 0).all()
    if is_bridge(model):
        return
    one = make_bae(d_in=D_IN // 2)
    one.cfg.metadata.hook_name, one.cfg.metadata.hook_head_index = name, 1
    with steer(model, one, {3: 2}):
        change = model.run_with_cache(tokens)[1][name] - clean
    assert (change[:, :, 0] == 0).all()
    close(change[:, :, 1][~keep][0], 2 * one.scale[3] * one.W_dec[3])


def test_a_model_of_transformer_lens_alone_and_of_half_precision(tokens):
    source = make_model()
    model = HookedTransformer(source.cfg, tokenizer=source.tokenizer)
    model.load_state_dict(source.state_dict(), strict=False)
    sae: Any = placed(make_bae(), source)
    with steer(model, sae, {3: 4}):
        steered = model(tokens)
    with steer(source, sae, {3: 4}):
        close(steered, source(tokens))
    half = source.to(torch.bfloat16)
    for mode in ("add", "clamp"):
        with steer(half, sae, {3: 4}, mode=mode):
            assert half(tokens).dtype == torch.bfloat16


def test_what_cannot_be_steered_is_said(model, tokens):
    sae, levels = placed(make_bae(), model), placed(make_bae(n_levels=3), model)
    nan = float("nan")

    def refused(match: str, sae: SAE[Any], strengths: Any, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=match), steer(model, sae, strengths, **kwargs):
            pytest.fail("the body ran")

    refused(f"no latent {D_SAE}", sae, {D_SAE: 1})
    refused("no latent -1", sae, {-1: 1})
    refused("no latent 'a'", sae, {"a": 1})
    refused("no latent True", sae, {True: 1})
    refused("latent 3 must be a number; got nan", sae, {3: nan})
    refused("must be a number; got 'x'", sae, {3: "x"})
    refused(r"\{latent: strength\}; got \[3\]", sae, [3])
    refused("mode", sae, {3: 1}, mode="multiply")
    refused("usual_strengths", levels, {3: 1})
    refused("did not fire", levels, {3: 1}, usual={4: 1.0})
    refused("did not fire", levels, {3: 1}, usual=torch.full((D_SAE,), nan))
    refused("usual has 3 values", levels, {3: 1}, usual=[1.0, 2.0, 3.0])
    for several in (torch.tensor([1.0, 2.0]), np.array([1.0, 2.0])):
        refused("strength of latent 3 must be a number", sae, {3: several}, raw=True)
        refused("usual of latent 3 must be a number", levels, {3: 1}, usual={3: several})
        refused("usual has 2 values", levels, {3: 1}, usual=several)
    for usual in (3, torch.tensor(3.0), "x" * D_SAE):
        refused("usual must be what usual_strengths returns", levels, {3: 1}, usual=usual)
    refused("usual of latent 3 must be a number", levels, {3: 1}, usual=torch.ones(D_SAE, 2))
    refused("no latent tensor", sae, {torch.tensor([3, 4]): 1}, raw=True)
    for one in (torch.tensor([2.0]), np.float32(2)):
        given: Any = {np.int64(3): one}, np.ones(D_SAE)
        with steer(model, sae, given[0], raw=True), steer(model, levels, {3: 1}, usual=given[1]):
            pass
    sequences = make_clvq(decoder="transformer", d_out=D_IN)
    refused("whole sequences", placed(sequences, model, elsewhere=True), {3: 1})
    batch = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4))
    refused("other tokens of the batch", placed(batch, model), {3: 1}, mode="clamp", raw=True)
    with pytest.raises(ValueError, match="no latent 99"), ablate_latents(model, sae, [99]):
        pytest.fail("the body ran")
    lost = make_bae()
    lost.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    refused("no hook point 'blocks.9.hook_resid_post'", lost, {3: 1})
    with steer(model, sae, {}), steer(model, sae, {}, "clamp"), ablate_latents(model, sae, []):
        nothing = model(tokens)
    assert torch.equal(nothing, model(tokens))
    narrow = placed(make_bae(d_in=8), model)
    with pytest.raises(ValueError, match="width"), steer(model, narrow, {3: 1}):
        model(tokens)
