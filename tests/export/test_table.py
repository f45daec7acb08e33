"""A row a latent, read back by pandas."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bae_lens.export import table_rows, write_table
from bae_lens.export.folder import NOTE_FILENAME
from bae_lens.fingerprint import weights_sha256
from bae_lens.steering import logit_effects
from tests.export.seen import at_hook, make_standard, seen
from tests.helpers import HOOK, make_bae, make_model
from tests.report.helpers import make_comsem, make_intruder

MODEL = make_model()
SAE = at_hook(make_bae())
RECORDS = seen(MODEL, SAE)
LISTS = ("values", "value_counts", "top_tokens", "top_token_counts", "lift_tokens", "lifts")


def test_both_files_hold_what_was_seen(tmp_path: Path) -> None:
    effects = logit_effects(MODEL, SAE, k=3)
    intruder, comsem = make_intruder(RECORDS, 5), make_comsem(RECORDS, 5)
    write_table(tmp_path / "out", RECORDS, SAE, [intruder, comsem], effects)

    table = pd.read_parquet(tmp_path / "out" / "latents.parquet").set_index("latent")
    assert list(table.index) == list(range(40))
    for latent, of in zip(RECORDS.latents, effects, strict=True):
        row = table.loc[latent.index]
        assert row["says_when_off"] == latent.when_off
        assert (row["rate"], row["n_firings"]) == (latent.rate, latent.n_firings)
        density = 1 - latent.rate if latent.when_off else latent.rate
        assert row["density"] == density
        assert row["n_active"] == round(density * RECORDS.n_tokens)
        scale = float(SAE.scale[latent.index])
        assert row["mean_activation"] == pytest.approx(scale, rel=1e-6) or row["n_active"] == 0
        assert list(row["top_tokens"]) == [count.string for count in latent.top_tokens]
        assert list(row["top_token_counts"]) == [count.n for count in latent.top_tokens]
        assert list(row["lifts"]) == [count.lift for count in latent.lift_tokens or ()]
        assert list(row["neighbors"]) == [other.latent for other in latent.neighbors or ()]
        # Of where it is off, as the tokens are, where it says something there.
        raised, lowered, sign = (
            (of.bottom, of.top, -1) if latent.when_off else (of.top, of.bottom, 1)
        )
        assert list(row["raised_tokens"]) == [token.string for token in raised]
        assert list(row["lowered_logits"]) == [sign * token.value for token in lowered]
    tested = {own.latent: own for own in intruder.latents}
    purity = table["token_purity"].dropna()
    assert set(purity.index) == tested.keys()
    assert purity.to_dict() == {j: round(own.purity, 3) for j, own in tested.items()}
    for j, own in tested.items():
        share = own.accuracy()
        if share is not None:
            assert table.loc[j, "intruder_score"] == round(share.mean, 3)
            low = table.loc[j, "intruder_score_low"]
            assert low == pytest.approx(share.low, abs=1e-3)
    phrases = {run.phrase for run in comsem.runs if run.phrase is not None}
    assert phrases
    assert set(table["phrase"].dropna()) <= phrases

    read = {name: json.loads for name in LISTS}
    other = pd.read_csv(tmp_path / "out" / "latents.csv", converters=read, index_col="latent")
    assert list(other.columns) == list(table.columns)
    for name in LISTS:
        assert [list(x) for x in other[name]] == [list(x) for x in table[name]]
    pd.testing.assert_series_equal(other["density"], table["density"])
    pd.testing.assert_series_equal(other["token_purity"], table["token_purity"])

    note = json.loads((tmp_path / "out" / NOTE_FILENAME).read_text())
    assert (note["export"], note["hook_name"], note["n_tokens"]) == ("csv", HOOK, RECORDS.n_tokens)
    assert note["weights_sha256"] == weights_sha256(SAE)


def test_without_scores_and_effects_there_are_no_such_columns() -> None:
    sae = make_standard()
    rows = table_rows(seen(MODEL, sae), sae)
    assert len({tuple(row) for row in rows}) == 1
    assert not {"raised_tokens", "phrase", "token_purity", "class_shares"} & set(rows[0])


def test_what_is_of_another_dictionary_is_refused(tmp_path: Path) -> None:
    other = at_hook(make_bae(seed=1))
    with pytest.raises(ValueError, match="other weights"):
        write_table(tmp_path / "out", RECORDS, other)
    with pytest.raises(ValueError, match="effects"):
        write_table(
            tmp_path / "out",
            RECORDS,
            SAE,
            effects=[logit_effects(MODEL, SAE, [0], k=1)[0]._replace(latent=40)],
        )
    assert list(tmp_path.iterdir()) == []
