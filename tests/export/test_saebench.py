"""An SAE for SAEBench, and SAEBench's own checks of it where that is installed."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig

from bae_lens.export import load_saebench, saebench, write_saebench
from bae_lens.fingerprint import weights_sha256
from tests.export.seen import at_hook, make_standard
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    between,
    make_activations,
    make_bae,
    make_clvq,
    make_transcoder,
)

X = make_activations(200)


def make_topk(rescale: bool = True) -> TopKSAE:
    fields = {"normalize_activations": "none", "rescale_acts_by_decoder_norm": rescale}
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5, **fields))
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
    return at_hook(sae)


DICTIONARIES = {
    "bits": lambda: at_hook(make_bae()),
    "levels": lambda: at_hook(make_bae(n_levels=3)),
    "feedback": lambda: at_hook(make_bae(feedback_steps=1)),
    "standard": make_standard,
    "topk": make_topk,
}


@pytest.fixture
def without_saebench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saebench, "_config", lambda fields: SimpleNamespace(**fields))


@pytest.mark.parametrize("name", DICTIONARIES)
def test_rows_have_norm_1_and_the_reconstruction_is_the_same(
    name: str, tmp_path: Path, without_saebench: None
) -> None:
    sae: Any = DICTIONARIES[name]()
    with torch.no_grad():
        before, acts = sae(X), sae.encode(X)
    norms = sae.W_dec.norm(dim=1).clone()
    write_saebench(tmp_path / "out", sae)
    loaded = runpy.run_path(str(tmp_path / "out" / "saebench_sae.py"))["load"]()
    assert loaded.check_decoder_norms()
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), before, rtol=1e-4, atol=1e-4)
        if name == "topk":  # Of which the norms are a part already.
            norms = torch.ones(())
        torch.testing.assert_close(loaded.encode(X), acts * norms, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded.decode(loaded.encode(X)), loaded(X))
    assert loaded.W_enc.shape == (D_IN, D_SAE)
    assert (loaded.b_enc.shape, loaded.b_dec.shape) == ((D_SAE,), (D_IN,))
    assert (loaded.cfg.hook_name, loaded.cfg.hook_layer, loaded.cfg.d_sae) == (HOOK, 0, D_SAE)
    assert (loaded.cfg.context_size, loaded.cfg.dtype) == (CONTEXT_SIZE, "float32")
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_topk(rescale=False),
        lambda: at_hook(MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=D_IN, d_sae=D_SAE))),
    ],
    ids=["topk", "matching pursuit"],
)
def test_what_cannot_be_folded_and_need_not_be_is_written(
    tmp_path: Path, make: Any, without_saebench: None
) -> None:
    sae = make()
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        expected = sae(X)
    write_saebench(tmp_path / "out", sae)
    loaded = load_saebench(tmp_path / "out")
    assert loaded.check_decoder_norms()
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), expected)
    assert loaded.W_enc.shape == (D_IN, D_SAE)


def test_the_sae_that_is_given_stays_as_it_was(tmp_path: Path) -> None:
    sae = at_hook(make_bae())
    before = weights_sha256(sae)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="of no export"):
        write_saebench(tmp_path, sae)
    for _ in range(2):
        write_saebench(tmp_path / "out", sae)
    assert weights_sha256(sae) == before


def test_it_takes_the_type_that_is_asked_for(tmp_path: Path, without_saebench: None) -> None:
    write_saebench(tmp_path / "out", at_hook(make_bae()))
    loaded = load_saebench(tmp_path / "out", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded(X.bfloat16()).dtype == torch.bfloat16
    assert loaded.check_decoder_norms()
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        load_saebench(tmp_path / "out", dtype="int8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: at_hook(between(make_bae(), HOOK)),
            "an SAE at one hook point, and this bae reads",
        ),
        (lambda: at_hook(between(make_transcoder(), HOOK)), "an SAE at one hook point"),
        (lambda: make_topk(rescale=False), "this topk have other norms, which cannot be folded"),
        (lambda: at_hook(make_clvq(d_out=D_IN)), "an SAE at one hook point"),
        (lambda: at_hook(make_bae(), hook_name="blocks.0.attn.hook_z"), "knows no heads"),
        (lambda: at_hook(make_bae(), hook_name="hook_embed"), "is in none"),
        (lambda: at_hook(make_bae(normalize_activations="layer_norm")), "a number of its own"),
        *(
            (
                lambda kind=kind: at_hook(make_bae(normalize_activations=kind)),
                "is not in its weights",
            )
            for kind in ("expected_average_only_in", "covariance_whitening")
        ),
    ],
)
def test_what_saebench_cannot_evaluate_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_saebench(tmp_path / "out", make())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_such_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_saebench(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("sae_bench") is not None, reason="it is installed")
def test_without_saebench_it_says_how_to_install_it(tmp_path: Path) -> None:
    write_saebench(tmp_path / "out", at_hook(make_bae()))
    with pytest.raises(ImportError, match="pip install --no-deps sae-bench"):
        load_saebench(tmp_path / "out")


@pytest.mark.skipif(importlib.util.find_spec("sae_bench") is None, reason="its own environment")
def test_saebench_checks_it_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_bench.custom_saes import base_sae  # pyright: ignore

    from tests.helpers import make_model

    write_saebench(tmp_path / "out", at_hook(make_bae()))
    loaded = load_saebench(tmp_path / "out")
    assert base_sae.BaseSAE.check_decoder_norms(loaded)  # pyright: ignore
    monkeypatch.setattr(
        base_sae,
        "HookedTransformer",
        SimpleNamespace(from_pretrained=lambda *_, **__: make_model()),
    )
    base_sae.BaseSAE.test_sae(loaded, "tiny")  # pyright: ignore
    assert loaded.cfg.to_dict()["d_sae"] == D_SAE
