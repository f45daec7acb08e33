"""Sparse probing of texts whose class is in one latent, in none, or in the words of a tiny model's texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.dictionaries import Clusters
from bae_lens.scoring import (
    SparseProbingResult,
    SparseProbingSettings,
    SparseProbingTask,
    probe_latents,
    sparse_probing,
)
from bae_lens.scoring.probing_result import (
    COMPONENTS,
    CONTROLS,
    DIMENSIONS,
    LATENTS,
    RANDOM,
    SHUFFLED,
    WHOLE,
)
from tests.conformance.cases import make_topk
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    SINK,
    make_bae,
    make_bridge,
    make_clvq,
    make_headless_encoder,
    make_model,
    make_sinking_model,
)
from tests.scoring.planted_probing import (
    N_LATENTS,
    N_TEXTS,
    PLANTED,
    planted_task,
    random_labels,
    reads_dimensions,
)

# Known answers


def test_a_latent_that_is_the_label_is_found_and_tells_all() -> None:
    task = planted_task(random_labels())
    result = probe_latents(task, reads_dimensions())

    for k in (1, 2, 5):
        assert result.accuracy(LATENTS, k) == (1, 1, 1)
        row = result.row(LATENTS, k, 1)
        assert row.chosen[0] == PLANTED
        assert len(row.chosen) == k
        # Each of 64 latents is drawn as often.
        assert result.accuracy(RANDOM, k).mean < 0.65
        assert result.excess_over(RANDOM, k).low > 0.3
        # A latent is a dimension here.
        assert result.row(DIMENSIONS, k, 1).right == row.right
        assert result.excess_over(DIMENSIONS, k) == (0, 0, 0)
    assert result.accuracy(SHUFFLED, 1).mean < 0.7
    assert result.accuracy(WHOLE, None).mean > 0.95
    assert result.n_alive == result.n_latents == N_LATENTS
    assert result.positives == (1,)
    assert sum(result.n_train) + len(result.labels) == N_TEXTS


def test_that_labels_of_no_meaning_are_told_by_chance() -> None:
    result = probe_latents(planted_task(random_labels(), planted=False), reads_dimensions())

    for method in (LATENTS, *CONTROLS):
        low, high = result.accuracy(method, 5)[1:]
        assert low < 0.5 < high, method
    assert result.accuracy(WHOLE, None).low < 0.5


def test_classes_are_told_one_against_the_rest() -> None:
    labels = random_labels(3)
    result = probe_latents(planted_task(labels), reads_dimensions())

    assert result.positives == (0, 1, 2)
    assert result.accuracy(LATENTS, 1, 1) == (1, 1, 1)
    # Of the others it is half of the rest that the planted latent tells.
    assert result.accuracy(LATENTS, 1, 0).mean == pytest.approx(0.75, abs=0.06)
    mean = np.mean([result.accuracy(LATENTS, 1, c).mean for c in range(3)])
    assert result.accuracy(LATENTS, 1).mean == pytest.approx(mean)
    # By hand, balanced.
    own, held_out = np.asarray(result.row(LATENTS, 1, 0).right), np.asarray(result.labels)
    by_class = [own[held_out == c].mean() for c in range(3)]
    expected = by_class[0] / 2 + (by_class[1] + by_class[2]) / 4
    assert result.accuracy(LATENTS, 1, 0).mean == pytest.approx(expected)
    assert "Means over 3 classes" in result.table()


def test_rare_classes_weigh_as_others_do() -> None:
    labels = (np.arange(N_TEXTS) % 10 == 3).astype(int)
    result = probe_latents(planted_task(labels, planted=False), reads_dimensions())

    assert abs(result.accuracy(LATENTS, 1).mean - 0.5) < 0.25
    texts, is_own = planted_task(labels).training_texts(1)
    assert (labels[texts] == is_own).all()
    assert is_own.sum() == (~is_own).sum() == sum(labels[np.arange(N_TEXTS) % 4 != 0])


def test_the_others_are_drawn_alike() -> None:
    labels = np.repeat([0, 1, 2, 3], [200, 100, 60, 40])
    texts, is_own = planted_task(labels).training_texts(0)
    counts = np.bincount(labels[texts])
    # As many as the smallest can give, of each.
    assert counts.tolist() == [90, 30, 30, 30]
    assert is_own.sum() == 90


def test_the_table_says_how_many_texts_probes_were_fitted_to() -> None:
    def about(labels: np.ndarray) -> str:
        return probe_latents(planted_task(labels), reads_dimensions()).table()

    # Training texts are 15, 9 and 6: 12 of the first are as many as twice the 6 of the last.
    labels = np.repeat([0, 1, 2], [20, 13, 7])
    fitted = [len(planted_task(labels).training_texts(c)[0]) for c in range(3)]
    assert fitted == [24, 18, 12]
    assert "Probes were fitted to 12 to 24 of 30 other texts, of a class as" in about(labels)
    rare = (np.arange(N_TEXTS) % 10 == 3).astype(int)
    assert "Probes were fitted to 80 of 300 other texts, of a class as" in about(rare)


def test_what_a_large_latent_hides_is_seen_in_its_own_units() -> None:
    """The planted latent is a thousandth of the others: by raw difference it comes last."""
    labels, sae = random_labels(), reads_dimensions()
    raw = probe_latents(planted_task(labels, scale=1e-3), sae)
    standardized = probe_latents(planted_task(labels, scale=1e-3, chosen_by="standardized"), sae)

    assert PLANTED not in raw.row(LATENTS, 5, 1).chosen
    assert raw.accuracy(LATENTS, 5).mean < 0.7
    assert standardized.row(LATENTS, 1, 1).chosen == (PLANTED,)
    assert standardized.accuracy(LATENTS, 1) == (1, 1, 1)


def test_a_component_of_rounding_alone_is_none() -> None:
    task = planted_task(random_labels()[:40], chosen_by="standardized")
    # 30 training texts, whose mean is taken out, of 64 dimensions.
    assert task.components.shape == (40, 29)


def test_codes_are_shares_of_a_text() -> None:
    """A one-hot code tells by how often it stands, whatever its distance is."""
    labels = random_labels()
    task = planted_task(labels)
    task = replace(
        task,
        acts=task.acts[:, PLANTED : PLANTED + 1].repeat(1, 2),
        settings=SparseProbingSettings(k=(1,)),
    )
    clusters = Clusters(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), HOOK)
    result = probe_latents(task, clusters)

    assert result.accuracy(LATENTS, 1) == (1, 1, 1)
    assert (result.dictionary, result.n_latents, result.n_alive) == ("k-means", 2, 2)


def test_several_dictionaries_share_a_task() -> None:
    task, sae = planted_task(random_labels()), reads_dimensions()
    first, again = probe_latents(task, sae), probe_latents(task, sae)
    assert first == again
    assert first.row(COMPONENTS, 1, 1) is again.row(COMPONENTS, 1, 1)
    shuffled = probe_latents(planted_task(random_labels(), seed=5), sae)
    assert shuffled.row(RANDOM, 1, 1).right != first.row(RANDOM, 1, 1).right


# Texts of a model


def make_texts(n: int = 120, seed: int = 3) -> LabeledTexts:
    """Texts of the tiny model's words, in half of which is one that stands in no other."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        text = [f"word{w}" for w in rng.integers(2, 40, size=rng.integers(5, 9))]
        text[rng.integers(len(text))] = "word1" if i % 2 else "word2"
        rows.append({"text": " ".join(text), "label": ("without", "with")[i % 2]})
    return LabeledTexts.read(rows)


SETTINGS = SparseProbingSettings(k=(1, 3), context_size=CONTEXT_SIZE, n_draws=2)
DICTIONARIES = {
    "bits": make_bae,
    "levels and feedback": lambda: make_bae(n_levels=3, feedback_steps=2),
    "codes": lambda: make_clvq(d_out=D_IN),
    "SAELens": lambda: reads_dimensions(D_IN),
    "transcoder": lambda: make_topk(d_out=D_IN),
    "clusters": lambda: Clusters(
        torch.randn(12, D_IN, generator=torch.Generator().manual_seed(0)), HOOK
    ),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_dictionary_is_probed(name: str) -> None:
    dictionary: Any = DICTIONARIES[name]()
    if not isinstance(dictionary, Clusters):
        dictionary.cfg.metadata.hook_name = HOOK
    result = sparse_probing(make_model(), dictionary, make_texts(), SETTINGS, verbose=False)

    assert result.label_names == ("with", "without")
    assert len(result.labels) == 30
    assert 0 < result.n_alive <= result.n_latents
    assert all(0 <= result.accuracy(method, 3).mean <= 1 for method in (LATENTS, *CONTROLS))


@pytest.mark.parametrize("kind", ["bridge", "encoder", "one head", "all heads"])
def test_every_model_is_read(kind: str, tmp_path: Path) -> None:
    d, hook = D_IN, HOOK
    model: Any = make_model()
    if kind == "bridge":
        model, hook = make_bridge(tmp_path), "blocks.0.hook_out"
    elif kind == "encoder":
        model, hook = make_headless_encoder(), "blocks.0.hook_out"
        d = model.cfg.d_model
    elif kind == "one head":
        d, hook = D_IN // 2, "blocks.0.attn.hook_z"
    elif kind == "all heads":
        hook = "blocks.0.attn.hook_z"
    sae = reads_dimensions(d, hook)
    if kind == "one head":
        sae.cfg.metadata.hook_head_index = 1
    settings = replace(SETTINGS, k=(1,))
    task = SparseProbingTask.prepare(
        model,
        hook,
        make_texts(),
        settings,
        head_index=1 if kind == "one head" else None,
        verbose=False,
    )
    result = probe_latents(task, sae)

    assert task.acts.shape[1] == d
    assert result.hook_name == hook


def test_the_mean_is_over_tokens_that_count() -> None:
    model, data = make_model(), make_texts(16)
    task = SparseProbingTask.prepare(model, HOOK, data, SETTINGS, verbose=False)
    for i in (0, 9):
        _, cache = model.run_with_cache(data.texts[i])
        # Without BOS.
        expected = cache[HOOK][0, 1:].double().mean(0)
        assert torch.allclose(torch.from_numpy(task.mean_acts[i]), expected, atol=1e-6)


def test_sinks_are_in_no_mean() -> None:
    data = make_texts(16)
    word: Any = make_model().to_string(torch.tensor([SINK]))
    texts = [
        f"{text} {word}" if i == 4 else text.replace(word, "word3")
        for i, text in enumerate(data.texts)
    ]
    data = replace(data, texts=texts)
    found = [
        SparseProbingTask.prepare(make_sinking_model(), HOOK, data, s, verbose=False)
        for s in (SETTINGS, replace(SETTINGS, exclude_outlier_tokens=False))
    ]
    assert [task.n_outlier_tokens for task in found] == [data.texts[4].split().count(word), 0]
    norms = [np.linalg.norm(task.mean_acts[4]) for task in found]
    assert norms[1] > 3 * norms[0]


def test_repeated_texts_are_taken_once(caplog: pytest.LogCaptureFixture) -> None:
    data = make_texts(40)
    twice = replace(
        data,
        texts=[*data.texts, *data.texts[:10]],
        labels=torch.cat([data.labels, data.labels[:10]]),
        rationales=[None] * 50,
    )
    task = SparseProbingTask.prepare(make_model(), HOOK, twice, SETTINGS, verbose=False)

    assert (task.n_repeated, len(task.labels)) == (10, 40)
    assert "10 of 50 texts are left out" in caplog.text
    once = SparseProbingTask.prepare(make_model(), HOOK, data, SETTINGS, verbose=False)
    assert once.text_of.max() == task.text_of.max() == 39


def test_equal_texts_of_different_classes_are_of_none(caplog: pytest.LogCaptureFixture) -> None:
    data = make_texts(40)
    more = replace(
        data,
        # Of the first three the other class is given, and of the next two the same.
        texts=[*data.texts, *data.texts[:5], data.texts[0]],
        labels=torch.cat([data.labels, 1 - data.labels[:3], data.labels[3:5], data.labels[:1]]),
        rationales=[None] * 46,
    )
    task = SparseProbingTask.prepare(make_model(), HOOK, more, SETTINGS, verbose=False)

    assert (task.n_ambiguous, task.n_repeated, len(task.labels)) == (7, 2, 37)
    assert task.labels.tolist() == data.labels[3:].tolist()
    assert "7 of 46 texts are left out: the model reads one of another class as" in caplog.text
    assert "2 of 46 texts are left out: the model reads another as" in caplog.text
    result = probe_latents(task, reads_dimensions(D_IN))
    assert result.n_ambiguous == 7
    assert "2 texts were left out, since others" in result.table()
    assert "7 were left out, since texts of other classes are read as they are" in result.table()


def test_a_result_of_before_loads(tmp_path: Path) -> None:
    result = probe_latents(planted_task(random_labels()[:60]), reads_dimensions())
    values = result.to_dict()
    del values["n_ambiguous"]
    assert SparseProbingResult.from_dict(values) == result


def test_texts_without_a_token_that_counts_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = make_texts(40)
    empty = "<eos>"
    texts = [*data.texts[:3], empty, *data.texts[3:30], f"{empty} {empty}", *data.texts[30:]]
    labels = torch.cat(
        [data.labels[:3], torch.ones(1), data.labels[3:30], torch.zeros(1), data.labels[30:]]
    )
    more = LabeledTexts(texts, labels.long(), data.label_names, [None] * 42)
    task = SparseProbingTask.prepare(make_model(), HOOK, more, SETTINGS, verbose=False)

    assert "2 of 42 texts are left out: no token of them" in caplog.text
    # The others have their own classes and means.
    once = SparseProbingTask.prepare(make_model(), HOOK, data, SETTINGS, verbose=False)
    assert task.labels.tolist() == once.labels.tolist()
    assert len(task.is_test) == 40
    np.testing.assert_allclose(task.mean_acts, once.mean_acts, atol=1e-6)
    assert task.n_repeated == 0
    # Outliers are no tokens that count either, and too few texts are told.
    sink: Any = make_model().to_string(torch.tensor([SINK]))
    few = replace(
        data.take(torch.arange(12)), texts=[*data.texts[:9], *([f"{sink} " * n for n in (1, 2, 3)])]
    )
    with pytest.raises(ValueError, match="needs 4 or more training texts that differ"):
        SparseProbingTask.prepare(make_sinking_model(), HOOK, few, SETTINGS, verbose=False)
    assert "3 of 12 texts are left out: no token of them" in caplog.text


def test_held_out_texts_may_be_given() -> None:
    train, test = make_texts(40), make_texts(20, seed=4)
    task = SparseProbingTask.prepare(
        make_model(), HOOK, train, SETTINGS, test_dataset=test, verbose=False
    )
    assert task.is_test.tolist() == [False] * 40 + [True] * 20
    # Their classes are told by name.
    renamed = replace(test, label_names=test.label_names[::-1], labels=1 - test.labels)
    again = SparseProbingTask.prepare(
        make_model(), HOOK, train, SETTINGS, test_dataset=renamed, verbose=False
    )
    assert again.labels.tolist() == task.labels.tolist()


# What is refused


def prepare(data: Any, settings: SparseProbingSettings = SETTINGS, **options: Any) -> Any:
    return SparseProbingTask.prepare(make_model(), HOOK, data, settings, verbose=False, **options)


def test_held_out_texts_that_are_training_texts_are_refused() -> None:
    train, test = make_texts(40), make_texts(20, seed=4)
    leak = replace(test, texts=[*test.texts[:3], train.texts[5], *test.texts[4:]])
    with pytest.raises(
        ValueError, match=r"1 of 20 held-out texts are training texts too.* number 4"
    ):
        prepare(train, test_dataset=leak)
    # As the model reads them: what is cut off tells nothing.
    longer = replace(test, texts=[f"{train.texts[0]} word3", *test.texts[1:]])
    short = replace(SETTINGS, context_size=5)
    with pytest.raises(ValueError, match="held-out texts are training texts too"):
        prepare(train, short, test_dataset=longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(24, dtype=torch.long)}, "texts of two classes at least"),
        ({"labels": (torch.arange(24) < 3).long()}, "needs 4 or more training texts"),
        ({"labels": torch.full((24,), 5)}, r"labels have to be 0 … 1"),
        ({"texts": ["word1"] * 24}, "needs 4 or more training texts"),
    ],
)
def test_too_few_texts_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(replace(make_texts(24), **change))


def test_other_classes_of_held_out_texts_are_refused() -> None:
    other = replace(make_texts(20, seed=4), label_names=["with", "other"])
    with pytest.raises(ValueError, match="held-out texts have the classes 'with', 'other'"):
        prepare(make_texts(40), test_dataset=other)


def test_a_dictionary_that_does_not_fit_is_refused() -> None:
    task = planted_task(random_labels())
    with pytest.raises(ValueError, match=r"reads 'elsewhere', and the texts were read at"):
        probe_latents(task, reads_dimensions(hook_name="elsewhere"))
    with pytest.raises(ValueError, match="reads activations of width 32"):
        probe_latents(task, reads_dimensions(32))
    dead = reads_dimensions()
    with torch.no_grad():
        dead.b_enc[3:] = -9
    with pytest.raises(ValueError, match="k is 5, and there are 3 of 64 latents that fire"):
        probe_latents(task, dead)
    with pytest.raises(ValueError, match="k is 65, and there are 64 dimensions"):
        probe_latents(planted_task(random_labels(), k=(1, 65)), reads_dimensions())
    training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=64, d_sae=64, k=3))
    training.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match="BatchTopK SAE in training"):
        probe_latents(task, training)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", ()),
        ("k", (0,)),
        ("k", (2, 2)),
        ("k", "12"),
        ("chosen_by", "best"),
        ("max_examples", 1),
        ("test_share", 1.0),
        ("test_share", 0),
        ("context_size", 2),
        ("n_draws", 10),
        ("batch_size", 0),
        ("seed", -1),
        ("exclude_outlier_tokens", "yes"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SparseProbingSettings(**{field: value})


# The result


def test_the_result_is_saved_and_loaded(tmp_path: Path) -> None:
    result = probe_latents(planted_task(random_labels(3)), reads_dimensions())
    result.save(tmp_path / "result.json")
    assert SparseProbingResult.load(tmp_path / "result.json") == result

    bad = replace(result, rows=result.rows[1:])
    bad.save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="rows must be one for each class, method and k"):
        SparseProbingResult.load(tmp_path / "bad.json")
    short = replace(result, labels=result.labels[1:])
    short.save(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="one entry for each of 99 held-out texts"):
        SparseProbingResult.load(tmp_path / "bad.json")


def test_the_tables_have_each_number_beside_its_controls() -> None:
    result = probe_latents(planted_task(random_labels()), reads_dimensions())
    text = result.table()

    first = result.to_table()
    assert first.head == ("a probe of", "k = 1", "k = 2", "k = 5")
    names = [row[0] for row in first.rows]
    assert names[:5] == [LATENTS, *CONTROLS]
    assert names[5:] == [f"latents less {control}" for control in (*CONTROLS, WHOLE)]
    assert "| latents | 1.000 [1.000, 1.000] |" in text
    assert "chance is 0.5" in text
    assert str(PLANTED) in result.class_table().rows[0][1].split(", ")[0]


def test_the_plot_has_a_line_for_each_method() -> None:
    pytest.importorskip("matplotlib")
    result = probe_latents(planted_task(random_labels()), reads_dimensions())
    axes = result.plot("title").axes[0]
    assert [line.get_label() for line in axes.lines] == [LATENTS, *CONTROLS, WHOLE, "chance"]


def test_a_row_that_is_not_there_is_named() -> None:
    result = probe_latents(planted_task(random_labels()), reads_dimensions())
    with pytest.raises(KeyError, match="There is no row"):
        result.accuracy(LATENTS, 3)
