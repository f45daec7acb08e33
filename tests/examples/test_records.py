"""Settings, and evidence to JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bae_lens.examples import Count, Example, ExampleSettings, LatentRecord, LatentRecords, Neighbor
from bae_lens.examples.histogram import Histogram
from bae_lens.examples.records import CorpusToken, LeftOut


def make_records() -> LatentRecords:
    example = Example((3, 4, 5), 1, 0.25, 7, 12, (" the", " cat", "é"))
    latent = LatentRecord(
        index=0,
        when_off=True,
        n_firings=2,
        rate=0.2,
        strongest=(example,),
        random=(example, example),
        top_tokens=(Count(" cat", 2, 5.0, 4),),
        count_error=1,
        top_lemmas=(Count("cat", 2, 5.0, None),),
        neighbors=(Neighbor(1, 0.5, 2), Neighbor(1, 0.25, None)),
        class_shares=(0.5, 0.5),
    )
    dead = LatentRecord(1, False, 0, 0.0, (), (), (), 0)
    return LatentRecords(
        dictionary="bae",
        hook_name="blocks.0.hook_resid_post",
        strength="surprise",
        neighbor_measure="phi",
        n_tokens=10,
        n_texts=3,
        settings=ExampleSettings(n_tokens=None),
        latents=(latent, dead),
        class_names=("neg", "pos"),
        class_shares=(0.25, 0.75),
    )


def test_json_and_back(tmp_path):
    records = make_records()

    records.save(tmp_path / "folder" / "examples.json")

    text = (tmp_path / "folder" / "examples.json").read_text(encoding="utf-8")
    assert LatentRecords.load(tmp_path / "folder" / "examples.json") == records
    assert json.loads(text)["latents"][0]["strongest"][0]["strings"] == [" the", " cat", "é"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["examples.json"]


def test_latents_by_index():
    records = make_records()

    assert len(records) == 2
    assert records[1].index == 1


@pytest.mark.parametrize("content", ["[]", '{"latents": []}'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)

    with pytest.raises(ValueError, match="no records of collect_examples"):
        LatentRecords.load(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((("n_tokens",), -3), (("n_texts",), -1)),
        (("latents", 0, "n_firings"), -3),
        (("latents", 0, "count_error"), -1),
        *((("latents", 0, "rate"), rate) for rate in (-0.5, 1.5)),
        *((("latents", 0, part, 0, "n"), -1) for part in ("top_tokens", "lift_tokens")),
        (("latents", 0, "neighbors", 0, "n_together"), -1),
        (("latents", 0, "histogram", "counts", 0), -1),
        *((("latents", 0, "strongest", 0, name), -1) for name in ("text", "position", "marked")),
        *((("corpus_tokens", 0, "example", name), -1) for name in ("text", "position", "marked")),
        (("outliers", "n"), -1),
    ],
)
def test_what_counts_below_0_is_refused(tmp_path, path, value):
    counted = Count(" cat", 3, 1.5, 4)
    records = make_records()
    latent = replace(
        records[0],
        top_tokens=(counted,),
        lift_tokens=(counted,),
        neighbors=(Neighbor(1, 0.5, 2),),
        histogram=Histogram(0, (3,)),
    )
    corpus = (CorpusToken(latent.strongest[0], (0,)),)
    records = replace(
        records,
        latents=(latent, records[1]),
        corpus_tokens=corpus,
        outliers=LeftOut(1, 2.0, 10.0),
    )
    values = json.loads(json.dumps(records.to_dict()))
    file = tmp_path / "examples.json"
    file.write_text(json.dumps(values))
    assert LatentRecords.load(file) == records
    *names, last = path
    inner = values
    for name in names:
        inner = inner[name]
    inner[last] = value
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"must be .* got {value}"):
        LatentRecords.load(file)


def test_the_marked_token_stands_out():
    example = Example((3, 4, 5), 1, 0.25, 7, 12, (" the", " cat", " sat"))

    assert example.marked_text == " the «cat» sat"
    assert example._replace(strings=(" un", "like", "ly")).marked_text == " un«like»ly"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_tokens", 0), ("n_strongest", 0), ("n_random", -1), ("n_left", -1), ("n_right", 2.5)),
        *(("n_counters", 0), ("n_neighbors", -1), ("batch_size", 0), ("seed", -1)),
        *(("n_strongest", True), ("n_random", None)),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number.*got"):
        ExampleSettings(**{name: value})


def test_settings_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="Raise n_counters"):
        ExampleSettings(n_top_tokens=20, n_counters=10)
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to {2**64 - 1}"):
        ExampleSettings(seed=2**64)
