"""Divergences of the next token when activations are replaced, against plain references and known answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from torch import Tensor

from bae_lens import attached
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.evals import ReplacementDivergences, replacement_divergences
from bae_lens.evals.replacement import divergences
from bae_lens.stats import Interval
from tests.attach.test_attach import Model, hook_of
from tests.conformance.cases import make_topk
from tests.helpers import (
    D_IN,
    HOOK,
    SINK,
    between,
    make_bae,
    make_bridge,
    make_clvq,
    make_headless_encoder,
    make_model,
    make_sinking_model,
    make_tokens,
)

SPECIAL = torch.tensor([0, 1, 2])


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


def standard(decoder: Tensor, bias: Tensor, hook: str = HOOK) -> SAE[Any]:
    """An SAE that decodes ReLU(x) and ReLU(−x) by ±decoder: x @ decoder + bias."""
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=2 * D_IN, apply_b_dec_to_input=False))
    eye = torch.eye(D_IN)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([decoder, -decoder]))
        sae.b_enc.zero_()
        sae.b_dec.copy_(bias)
    sae.cfg.metadata.hook_name = hook
    return sae


def texts() -> list[Tensor]:
    """Of unequal lengths, with special tokens in the middle and at the end."""
    found = [make_tokens(1, n, seed=n)[0] for n in (9, 5, 12, 9, 7)]
    found[0][3] = found[3][-1] = 1
    return found


def kept(tokens: Tensor) -> Tensor:
    return ~torch.isin(tokens, SPECIAL)


def by_hand(
    model: Model, hook: str, tokens: Tensor, new: Tensor, where: Tensor
) -> tuple[float, float]:
    """JS and KL after the last token that counts, from probabilities."""
    last = int(kept(tokens).nonzero()[-1])

    def replace(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(where[None, :, None], new, acts)

    with torch.no_grad():
        after = model.run_with_hooks(tokens[None], fwd_hooks=[(hook, replace)])
        p, q = (x[0, last].double().softmax(-1) for x in (model(tokens[None]), after))
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    return js.item(), (p * (p / q).log()).sum().item()


def test_each_replacement_is_what_it_says(model: Model) -> None:
    hook, sae = hook_of(model), make_bae()
    sae.cfg.metadata.hook_name = hook
    found = replacement_divergences(model, sae, texts(), context_size=30, batch_size=2)

    assert found.n_texts == 5
    with torch.no_grad():
        acts = [model.run_with_cache(tokens[None])[1][hook] for tokens in texts()]
        mean = torch.cat([a[0, kept(t)] for a, t in zip(acts, texts(), strict=True)]).mean(0)
        for i, (tokens, own) in enumerate(zip(texts(), acts, strict=True)):
            last = torch.zeros(len(tokens), dtype=torch.bool)
            last[kept(tokens).nonzero()[-1]] = True
            news = {"reconstruction": sae(own), "mean": mean, "zero": torch.zeros(D_IN)}
            for name, new in news.items():
                for where, mask in (("last", last), ("all", kept(tokens))):
                    js, kl = by_hand(model, hook, tokens, new, mask)
                    values = found.values[where, name]  # pyright: ignore[reportArgumentType]
                    assert values.js[i].item() == pytest.approx(js, rel=1e-3, abs=1e-6)
                    assert values.kl[i].item() == pytest.approx(kl, rel=1e-3, abs=1e-6)
                    assert 0 < js <= math.log(2)
    # Replacing more than the last token is another thing.
    last, every = found.values["last", "zero"], found.values["all", "zero"]
    assert (last.js - every.js).abs().max() > 1e-4


def test_what_rebuilds_exactly_changes_nothing_and_constants_are_their_controls() -> None:
    model, eye, zero = make_model(), torch.eye(D_IN), torch.zeros(D_IN)
    exact = replacement_divergences(model, standard(eye, zero), texts())
    for where in ("last", "all"):
        assert exact.values[where, "reconstruction"].kl.max() < 1e-6
        assert exact.interval(where).mean < 1e-6
        assert exact.interval(where, "mean").mean > 1e-3

    nothing = replacement_divergences(model, standard(0 * eye, zero), texts())
    with torch.no_grad():
        acts = [model.run_with_cache(t[None])[1][HOOK][0, kept(t)] for t in texts()]
    mean = torch.cat(acts).mean(0)
    means = replacement_divergences(model, standard(0 * eye, mean), texts())
    pairs: Any = ((nothing, "zero"), (means, "mean"))
    for found, control in pairs:
        for where in ("last", "all"):
            for one, other in zip(
                found.values[where, "reconstruction"], found.values[where, control], strict=True
            ):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
            assert (found.values[where, control].js <= math.log(2)).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_divergences_of_known_distributions(sparse: bool) -> None:
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    if not sparse:
        p, q = p.clamp(1e-12), q.clamp(1e-12)
    else:
        p, q = p[[0, 2]], q[[0, 2]]
    found = divergences(p.log(), q.log())
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert found.js[0] == 0
    assert found.kl[0] == 0
    assert found.kl[-1].item() == pytest.approx(kl)
    assert found.js[-1].item() == pytest.approx(
        (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)) / 2
        + (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)) / 2
    )
    if not sparse:
        assert found.js[1].item() == pytest.approx(math.log(2))
        assert found.kl[1] > 20


MAKE = {
    "bits": make_bae,
    "levels and feedback": lambda: make_bae(n_levels=3, feedback_steps=2),
    "topk": lambda: TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=40, k=5, apply_b_dec_to_input=False)),
    "transcoder": lambda: make_topk(d_out=D_IN),
    "codes": lambda: make_clvq(decoder="token", d_out=D_IN),
    "whole sequences": lambda: make_clvq(decoder="transformer", d_out=D_IN),
}


@pytest.mark.parametrize("name", MAKE)
def test_any_architecture_is_replaced_as_where_it_is_attached(name: str) -> None:
    model, sae = make_model(), MAKE[name]()
    elsewhere = name in ("transcoder", "codes", "whole sequences")
    sae = between(sae) if elsewhere else between(sae, hook_out=None)
    found = replacement_divergences(model, sae, texts())
    for i, tokens in enumerate(texts()):
        last = int(kept(tokens).nonzero()[-1])
        with torch.no_grad():
            own = model(tokens[None])[0, last].double().log_softmax(-1)
            with attached(model, sae):
                other = model(tokens[None])[0, last].double().log_softmax(-1)
        expected = divergences(own[None], other[None])
        js, kl = found.values["all", "reconstruction"]
        assert js[i].item() == pytest.approx(expected.js.item(), rel=1e-3, abs=1e-6)
        assert kl[i].item() == pytest.approx(expected.kl.item(), rel=1e-3, abs=1e-6)


def test_one_head_alone() -> None:
    model, name = make_model(), "blocks.0.attn.hook_z"
    one = make_bae(d_in=D_IN // 2)
    one.cfg.metadata.hook_name, one.cfg.metadata.hook_head_index = name, 1
    found = replacement_divergences(model, one, texts())
    tokens = texts()[1]

    def replace(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone()
        new[0, 1:, 1] = 0
        return new

    with torch.no_grad():
        own = model(tokens[None])[:, -1].double().log_softmax(-1)
        other = model.run_with_hooks(tokens[None], fwd_hooks=[(name, replace)])
    expected = divergences(own, other[:, -1].double().log_softmax(-1))
    assert found.values["all", "zero"].kl[1].item() == pytest.approx(expected.kl.item(), rel=1e-3)


def test_outliers_keep_their_activations_and_are_not_in_the_mean() -> None:
    model, sae = make_sinking_model(), between(make_bae(), hook_out=None)
    tokens = texts()
    tokens[1][2] = SINK
    acts = model.run_with_cache(make_tokens(2, 9))[1][HOOK][:, 1:]
    norms = OutlierTokens({HOOK: acts.norm(dim=-1).median().item()}, 20.0)
    without = replacement_divergences(model, sae, tokens, exclude_outlier_tokens=norms)
    as_special = replacement_divergences(model, sae, tokens, exclude_special_tokens=[0, 1, 2, SINK])
    with_them = replacement_divergences(model, sae, tokens)
    for key, values in without.values.items():
        torch.testing.assert_close(values.kl, as_special.values[key].kl)
    assert (
        without.values["all", "mean"].kl - with_them.values["all", "mean"].kl
    ).abs().max() > 1e-3


def test_text_is_cut_where_it_is_said_and_results_are_told() -> None:
    model, sae = make_model(), between(make_bae(), hook_out=None)
    words = ["word1 word7 word3 word8 word9 word4", "word2 word4 word1"]
    whole = replacement_divergences(model, sae, words)
    cut = replacement_divergences(model, sae, words, context_size=4)
    shorter = replacement_divergences(model, sae, ["word1 word7 word3", words[1]])
    torch.testing.assert_close(cut.values["all", "zero"].js, shorter.values["all", "zero"].js)
    assert not torch.equal(cut.values["all", "zero"].js, whole.values["all", "zero"].js)
    sae.cfg.metadata.context_size = 4
    by_sae = replacement_divergences(model, sae, words)
    torch.testing.assert_close(cut.values["last", "mean"].js, by_sae.values["last", "mean"].js)
    # Token ids of the texts: the same.
    ids = torch.cat([model.to_tokens(words[1]), model.to_tokens("word3 word3 word3")])
    by_ids = replacement_divergences(model, sae, ids)
    by_text = replacement_divergences(model, sae, [words[1], "word3 word3 word3"])
    torch.testing.assert_close(by_ids.values["all", "mean"], by_text.values["all", "mean"])

    assert isinstance(whole, ReplacementDivergences)
    table = whole.table()
    assert [row[0] for row in table.rows] == [
        *("reconstruction, last token", "mean, last token", "zero, last token"),
        *("reconstruction, all tokens", "mean, all tokens", "zero, all tokens"),
    ]
    interval = whole.interval("all", "zero", "kl")
    assert interval.low <= interval.mean <= interval.high
    assert f"{interval.mean:.3f}" in table.rows[-1][2]
    assert "2 texts, in nats, with 95 % intervals" in table.text()


def test_of_one_text_there_is_no_interval() -> None:
    model, sae = make_model(), between(make_bae(), hook_out=None)
    found = replacement_divergences(model, sae, ["word1 word7 word3"])
    value = found.values["all", "zero"].js.item()
    assert found.interval("all", "zero") == Interval.of_one(value)
    assert found.table().rows[-1][1] == f"{value:.3f}"
    assert "after one text, in nats; JS" in found.table().text()


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    model, sae = make_model(), between(make_bae(), hook_out=None)

    def refused(match: str, *given: Any, of: Any = model, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=match):
            replacement_divergences(of, sae, *given, **kwargs)

    refused("texts must be a list of texts; got 'word1'", "word1")
    refused(r"texts must be a list of texts; got \[\]", [])
    refused("Text 1 has to be a string; got 3", ["word1", 3])
    refused("Text 1 has no token that counts", ["word1", ""])
    refused("Text 0 has no token that counts", torch.zeros(2, 3, dtype=torch.long))
    refused("context_size must be", ["word1"], context_size=0)
    refused("Text 0 has no token that counts", ["word1"], context_size=1)
    refused("batch_size must be", ["word1"], batch_size=0)
    refused("reference norms", ["word1"], exclude_outlier_tokens=True)
    found = replacement_divergences(model, sae, ["word1 word2"])
    for given in ({"where": "first"}, {"where": "all", "replacement": "x"}):
        with pytest.raises(ValueError, match="must be one of"):
            found.interval(**given)  # pyright: ignore[reportArgumentType]
    encoder = make_headless_encoder()
    sae.cfg.metadata.hook_name = "blocks.0.hook_out"
    refused(
        "predicts no next token",
        [torch.tensor([1, 2, 3])],
        of=encoder,
        exclude_special_tokens=False,
    )
