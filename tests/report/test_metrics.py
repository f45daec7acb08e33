"""Tests of ``bae_lens.report.metrics``."""

from __future__ import annotations

from bae_lens.report.metrics import list_metrics


def test_a_metric_of_an_older_version_is_found_under_its_name_of_today() -> None:
    (old,) = list_metrics({"code": {"quantised_explained_variance": 0.5}})
    (new,) = list_metrics({"code": {"quantized_explained_variance": 0.5}})
    assert old == new
    assert new.explanation
