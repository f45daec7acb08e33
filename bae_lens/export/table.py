"""One row a latent, as CSV and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens import SAE

from bae_lens.examples.records import LatentRecords
from bae_lens.export.folder import export_folder
from bae_lens.export.values import LatentValues, utf8
from bae_lens.fingerprint import weights_sha256
from bae_lens.report.scores import Result, best_phrases, check_results, list_columns
from bae_lens.steering.unembedding import LogitEffects, effects_of_firing

CSV_FILENAME, PARQUET_FILENAME = "latents.csv", "latents.parquet"


def table_rows(
    records: LatentRecords,
    sae: SAE[Any],
    results: Sequence[Result] = (),
    effects: Sequence[LogitEffects] = (),
) -> list[dict[str, Any]]:
    """One row a latent, all with the same columns in the same order.

    ``latent``; ``density``, the share of tokens at which its activation is not 0, and ``n_active`` of them;
    ``mean_activation`` there (exact of bits, levels and codes; else of magnitudes, from bins of 9 %); ``values`` and
    ``value_counts``, how often it has which value there; ``says_when_off`` of a bit that is on at more than half of the tokens, whose
    tokens, neighbors, logit effects and scores are of where it is off; ``n_firings`` and ``rate`` of what the row counts as firing, which is the same as
    ``n_active`` and ``density`` but for such bits; ``top_tokens`` with ``top_token_counts``, the tokens at which it fires most often, and
    ``lift_tokens`` with ``lifts``, those with the highest lift; ``neighbors`` with ``neighbor_values``; ``class_shares`` with labels;
    ``raised_tokens`` with ``raised_logits`` and ``lowered_tokens`` with ``lowered_logits`` where effects are given; and a column of each
    score, with its 95 % interval as ``…_low`` and ``…_high`` where there is one, and the best ``phrase``. None where
    a latent has no such number.

    Args:
        records: what was seen of the latents.
        sae: whose latents they are.
        results: of tests, as ``intruder_test`` and ``comsem_test`` give them.
        effects: as ``logit_effects`` gives them.

    Raises:
        ValueError: if records or results are of another dictionary, or effects of latents that it lacks.
    """
    values = LatentValues.of(records, sae)
    check_results(records, results)
    scores = list_columns(results)
    phrases = best_phrases(results, len(records))
    by_latent = effects_of_firing(records, effects)
    rows = []
    for latent in records.latents:
        counts = values.counts(latent)
        row: dict[str, Any] = {
            "latent": latent.index,
            "density": values.density(latent),
            "n_active": values.n_active(latent),
            "mean_activation": values.mean(latent),
            "values": [value for value, _ in counts],
            "value_counts": [n for _, n in counts],
            "says_when_off": latent.when_off,
            "n_firings": latent.n_firings,
            "rate": latent.rate,
            "top_tokens": [utf8(count.string) for count in latent.top_tokens],
            "top_token_counts": [count.n for count in latent.top_tokens],
            "lift_tokens": [utf8(count.string) for count in latent.lift_tokens or ()],
            "lifts": [float(count.lift) for count in latent.lift_tokens or ()],
            "neighbors": [other.latent for other in latent.neighbors or ()],
            "neighbor_values": [float(other.value) for other in latent.neighbors or ()],
        }
        if records.class_names is not None:
            row["class_shares"] = [float(share) for share in latent.class_shares or ()]
        if effects:
            of = by_latent.get(latent.index)
            for name, end in (
                ("raised", of.top if of else ()),
                ("lowered", of.bottom if of else ()),
            ):
                row[f"{name}_tokens"] = [utf8(token.string) for token in end]
                row[f"{name}_logits"] = [float(token.value) for token in end]
        for column in scores:
            name = re.sub(r"\W+", "_", column.name)
            row[name] = column.values.get(latent.index)
            if column.bounds:
                low, high = column.bounds.get(latent.index, (None, None))
                row |= {f"{name}_low": low, f"{name}_high": high}
        if phrases is not None:
            phrase = phrases[latent.index]
            row["phrase"] = None if phrase is None else utf8(phrase)
        rows.append(row)
    return rows


def write_table(
    path: str | Path,
    records: LatentRecords,
    sae: SAE[Any],
    results: Sequence[Result] = (),
    effects: Sequence[LogitEffects] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the rows of ``table_rows`` to a folder, as ``latents.csv`` and ``latents.parquet``.

    Lists are lists in Parquet, and JSON in a cell of CSV: ``pandas.read_csv(file, converters={"top_tokens": json.loads})``.

    Args:
        path: of the folder.
        records: see ``table_rows``.
        sae: see ``table_rows``.
        results: see ``table_rows``.
        effects: see ``table_rows``.
        about: more for the folder's note, as which text and model it is of.

    Raises:
        ValueError: see ``table_rows`` and ``check_export_folder``.
    """
    import pyarrow
    from pyarrow import parquet

    rows = table_rows(records, sae, results, effects)
    about = {
        "dictionary": records.dictionary,
        "hook_name": records.hook_name,
        "n_latents": len(records),
        "n_tokens": records.n_tokens,
        "class_names": records.class_names,
        **(about or {}),
    }
    with export_folder(path, "csv", weights_sha256(sae), about) as folder:
        with (folder / CSV_FILENAME).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows([_cell(value) for value in row.values()] for row in rows)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        parquet.write_table(pyarrow.table(columns), folder / PARQUET_FILENAME)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
