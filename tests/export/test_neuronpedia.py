"""The requests of Neuronpedia's upload, and its own client library's where that is installed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bae_lens.export import NeuronpediaSource, write_neuronpedia
from bae_lens.export.values import LatentValues
from bae_lens.fingerprint import weights_sha256
from bae_lens.steering import logit_effects
from tests.export.seen import at_hook, make_standard, seen
from tests.helpers import HOOK, between, make_bae, make_model
from tests.report.helpers import make_comsem, make_intruder, make_records, with_windows

MODEL = make_model()
SAE = at_hook(make_bae())
RECORDS = seen(MODEL, SAE)
SOURCE = NeuronpediaSource("tiny", 0, "res-bae-40")


def requests_in(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("batch-*.json"), key=lambda file: int(file.stem.split("-")[1]))
    return [json.loads(file.read_text()) for file in files]


def test_a_request_has_all_of_each_latent_that_fires(tmp_path: Path) -> None:
    effects, comsem = logit_effects(MODEL, SAE, k=3), make_comsem(RECORDS, 5)
    n = write_neuronpedia(
        tmp_path / "out", RECORDS, SAE, SOURCE, [make_intruder(RECORDS, 5), comsem], effects
    )
    [request] = requests_in(tmp_path / "out")
    assert (request["modelId"], request["source"]) == ("tiny", "0-res-bae-40")
    fires = [latent for latent in RECORDS.latents if latent.n_firings]
    assert [of["index"] for of in request["features"]] == [latent.index for latent in fires]
    assert n == len(fires)
    values = LatentValues.of(RECORDS, SAE)
    for of, latent in zip(request["features"], fires, strict=True):
        assert of["density"] == values.density(latent)
        shown = [*latent.strongest, *latent.random]
        assert len(of["activations"]) == len(shown)
        for i, (own, example) in enumerate(zip(of["activations"], shown, strict=True)):
            assert own["tokens"] == list(example.strings)
            assert own["values"] == values.window(latent, example)
            # A bit is 0 or its scale, and at the marked token what it was drawn for.
            assert (own["values"][example.marked] == 0) == latent.when_off
            share = None if i < len(latent.strongest) else 1.0
            assert own["quantileFraction"] == share
        own_effects = effects[latent.index]
        top = (own_effects.opposite if latent.when_off else own_effects).top
        assert [own["token"] for own in of["topLogits"]] == [token.string for token in top]
        assert of["topLogits"][0]["value"] == pytest.approx(top[0].value, abs=1e-4)
        values_down = [own["value"] for own in of["bottomLogits"]]
        assert values_down == sorted(values_down)
        phrases = {run.phrase for run in comsem.runs if run.latent == latent.index} - {None}
        assert {own["text"] for own in of["explanations"]} == phrases
        assert all(own["modelName"] == comsem.judge for own in of["explanations"])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {"token purity", "ComSem score"} <= scores.keys()


def test_no_request_has_more_features_than_are_taken(tmp_path: Path) -> None:
    sae = at_hook(make_bae(d_sae=300))
    records = replace(
        with_windows(make_records(300, strength="surprise")),
        weights_sha256=weights_sha256(sae),
    )
    assert write_neuronpedia(tmp_path / "out", records, sae, SOURCE) == 299
    found = requests_in(tmp_path / "out")
    assert [len(request["features"]) for request in found] == [128, 128, 43]
    assert found[0]["features"][0]["topLogits"] is None
    assert not (tmp_path / "out" / "scores.json").exists()


def test_names_follow_the_metadata() -> None:
    assert NeuronpediaSource.of(SAE) == SOURCE
    sae = at_hook(
        make_standard(), model_name="EleutherAI/Pythia-70m", hook_name="blocks.3.hook_mlp_out"
    )
    assert NeuronpediaSource.of(sae) == ("pythia-70m", 3, "mlp-standard-40")
    own = NeuronpediaSource.of(sae, "pythia", "me-res")
    assert (own.model_id, own.source) == ("pythia", "3-me-res")


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"hook_name": "hook_embed"}, (), "in none"),
        ({}, ("a/b",), "model ID is part of an address"),
        ({}, (None, "a b"), "source set is part of an address"),
        ({"model_name": None}, (), "model ID"),
    ],
)
def test_names_that_neuronpedia_cannot_have_are_refused(
    changes: dict[str, Any], given: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NeuronpediaSource.of(at_hook(make_bae(), **changes), *given)


def test_a_dictionary_that_writes_elsewhere_has_no_source() -> None:
    with pytest.raises(ValueError, match=r"reads 'blocks\.0.* writes 'blocks\.1"):
        NeuronpediaSource.of(between(make_bae(), HOOK))


def test_nothing_is_written_of_examples_without_activations(tmp_path: Path) -> None:
    def older(examples: Any) -> Any:
        return tuple(example._replace(activations=None) for example in examples)

    none = replace(
        RECORDS,
        latents=tuple(
            replace(own, strongest=older(own.strongest), random=older(own.random))
            for own in RECORDS.latents
        ),
    )
    with pytest.raises(ValueError, match="Collect them anew: bae-lens report PATH"):
        write_neuronpedia(tmp_path / "out", none, SAE, SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_nothing_fires(tmp_path: Path) -> None:
    none = replace(
        RECORDS, latents=tuple(replace(own, n_firings=0, rate=0.0) for own in RECORDS.latents)
    )
    with pytest.raises(ValueError, match="No latent fires"):
        write_neuronpedia(tmp_path / "out", none, SAE, SOURCE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("neuronpedia") is None, reason="its own environment")
def test_neuronpedias_client_makes_the_same_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronpedia.np_activation import Activation  # pyright: ignore
    from neuronpedia.np_explanation import Explanation  # pyright: ignore
    from neuronpedia.np_feature import Feature, Logit  # pyright: ignore
    from neuronpedia.requests.feature_request import FeatureRequest  # pyright: ignore

    write_neuronpedia(
        tmp_path / "out",
        RECORDS,
        SAE,
        SOURCE,
        [make_comsem(RECORDS, 5)],
        logit_effects(MODEL, SAE, k=2),
    )
    [request] = requests_in(tmp_path / "out")
    sent: list[Any] = []
    monkeypatch.setattr(FeatureRequest, "send_request", lambda _, **of: sent.append(of))
    at = {"modelId": request["modelId"], "source": request["source"]}
    features = []
    for own in request["features"]:
        of = {**at, "index": own["index"]}
        texts = [(e["text"], e["methodName"], e["modelName"]) for e in own["explanations"]]
        features.append(
            Feature(
                **of,
                density=own["density"],
                top_logits=[Logit(**logit) for logit in own["topLogits"]],
                bottom_logits=[Logit(**logit) for logit in own["bottomLogits"]],
                explanations=[Explanation(*of.values(), *text) for text in texts],
                activations=[Activation(**of, **a) for a in own["activations"]],
            )
        )
    FeatureRequest(api_key="none").upload_batch(request["modelId"], request["source"], features)
    assert sent == [{"method": "POST", "uri": "upload-batch", "json": request}]
