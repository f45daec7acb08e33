"""The requests of Neuronpedia's upload."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens import SAE
from typing_extensions import Self

from bae_lens.dictionaries import Dictionary
from bae_lens.examples.records import Example, LatentRecord, LatentRecords
from bae_lens.export.folder import export_folder
from bae_lens.export.values import LatentValues, check_windows, utf8
from bae_lens.files.json_file import write_json
from bae_lens.fingerprint import weights_sha256
from bae_lens.report.scores import Result, check_results, list_columns
from bae_lens.scoring.comsem_result import ComSemResult
from bae_lens.steering.unembedding import LogitEffects, effects_of_firing

# Of the client library of Neuronpedia, which refuses more.
MAX_FEATURES_PER_BATCH = 128
SCORES_FILENAME = "scores.json"
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
# What may be a part of an address.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KINDS = {"resid": "res", "attn": "att", "mlp": "mlp"}


class NeuronpediaSource(NamedTuple):
    """What Neuronpedia calls a dictionary: the set of sources of all layers, and the layer.

    Attributes:
        model_id: of the model there, as ``"gemma-2-2b"``.
        layer: the block that the hook point is in.
        set_name: of the source set, as ``"gemmascope-res-16k"``.
    """

    model_id: str
    layer: int
    set_name: str

    @property
    def source(self) -> str:
        """As it is uploaded to: ``"20-gemmascope-res-16k"``."""
        return f"{self.layer}-{self.set_name}"

    @classmethod
    def of(cls, sae: SAE[Any], model_id: str | None = None, set_name: str | None = None) -> Self:
        """By an SAE's metadata.

        Args:
            sae: that reads and writes at one hook point of a block.
            model_id: default: the last part of the metadata's model name, in lower case.
            set_name: default: of the kind of hook point, the architecture and the number of latents, as ``"res-bae-2304"``.

        Raises:
            ValueError: if the SAE writes elsewhere than it reads, its hook point is in no block, or a name
                cannot be part of an address.
        """
        dictionary = Dictionary(sae)
        hook = dictionary.hook_name
        if dictionary.writes_elsewhere:
            raise ValueError(
                f"A source of Neuronpedia is at one hook point, and this {dictionary.name} reads {hook!r} and writes "
                f"{dictionary.hook_names[1]!r}. Export it as csv or for delphi, which ask only what it reads."
            )
        block = _BLOCK.search(hook)
        if block is None:
            raise ValueError(
                f"Neuronpedia names a source by its layer, and the hook point {hook!r} is in none."
            )
        if model_id is None:
            model_id = str(sae.cfg.metadata.model_name or "").rpartition("/")[2].lower()
        if set_name is None:
            kind = next((short for part, short in _KINDS.items() if part in hook), "res")
            set_name = f"{kind}-{dictionary.name.replace('_', '-')}-{dictionary.n_latents}"
        for what, name in (("model ID", model_id), ("source set", set_name)):
            if _NAME.fullmatch(name) is None:
                raise ValueError(
                    f"Neuronpedia's {what} is part of an address: letters, digits, '.', '_' and '-'; got {name[:60]!r}."
                )
        return cls(model_id, int(block[1]), set_name)


def write_neuronpedia(
    path: str | Path,
    records: LatentRecords,
    sae: SAE[Any],
    source: NeuronpediaSource,
    results: Sequence[Result] = (),
    effects: Sequence[LogitEffects] = (),
) -> int:
    """Write what Neuronpedia's ``POST /api/feature/upload-batch`` takes, a request of 128 features a file (``batch-0.json``, …).

    Of each latent its density, its examples as whole windows (the strongest, without a quantile, then the random ones, as those of
    an interval that holds all of its firings), the ends of its logit effects, and the phrases of ComSem as explanations. Scores, for which
    the request has no field, are in ``scores.json``. Latents that never fire are left out. Nothing is sent.

    Values are what ``encode`` gives. Those of a bit are all its scale, so that its strongest examples are told by their margin, which is not
    uploaded; a bit that is on at more than half of the tokens is shown by examples where it is off, at whose marked token it
    has 0, and by the logit effects of its being off.

    Args:
        path: of the folder.
        records: what was seen of the latents, with ``Example.activations``.
        sae: whose latents they are.
        source: what Neuronpedia calls it.
        results: of tests.
        effects: as ``logit_effects`` gives them.

    Returns:
        The number of features.

    Raises:
        ValueError: if records or results are of another dictionary, effects of latents that it lacks, the records have no activations
            along windows or no latent that fires, or the folder is of another export.
    """
    values = LatentValues.of(records, sae)
    check_results(records, results)
    by_latent = effects_of_firing(records, effects)
    explanations = _explanations(results)
    about = {"modelId": source.model_id, "source": source.source, "hook_name": records.hook_name}
    fires = firing_latents(records)
    with export_folder(path, "neuronpedia", weights_sha256(sae), about) as folder:
        for k in range(0, len(fires), MAX_FEATURES_PER_BATCH):
            features = [
                _feature(
                    values, latent, by_latent.get(latent.index), explanations.get(latent.index, [])
                )
                for latent in fires[k : k + MAX_FEATURES_PER_BATCH]
            ]
            request = {"modelId": source.model_id, "source": source.source, "features": features}
            write_json(folder / f"batch-{k // MAX_FEATURES_PER_BATCH}.json", request, indent=None)
        scores = {column.name: column.values for column in list_columns(results)}
        if scores:
            write_json(folder / SCORES_FILENAME, scores)
    return len(fires)


def firing_latents(records: LatentRecords) -> list[LatentRecord]:
    """The latents that have a feature there.

    Raises:
        ValueError: if there are none, or their examples do not say what latents have along windows.
    """
    fires = [latent for latent in records.latents if latent.n_firings > 0]
    if not fires:
        raise ValueError("No latent fires in the examples, so there is nothing to upload.")
    check_windows(records)
    return fires


def _feature(
    values: LatentValues,
    latent: LatentRecord,
    effects: LogitEffects | None,
    explanations: list[dict[str, Any]],
) -> dict[str, Any]:
    ends = (effects.top, effects.bottom) if effects else (None, None)
    top, bottom = (
        end and [{"token": utf8(t.string), "value": round(t.value, 4)} for t in end] for end in ends
    )
    return {
        "index": latent.index,
        "density": values.density(latent),
        "activations": list(_activations(values, latent)),
        "explanations": explanations,
        "topLogits": top,
        "bottomLogits": bottom,
    }


def _activations(values: LatentValues, latent: LatentRecord) -> Iterator[dict[str, Any]]:
    for example in latent.strongest:
        yield _activation(values, latent, example, (None, None, None))
    # They are drawn from all firings: one interval that holds them all.
    drawn = [values.window(latent, example)[example.marked] for example in latent.random]
    for example in latent.random:
        yield _activation(values, latent, example, (min(drawn), max(drawn), 1.0))


def _activation(
    values: LatentValues,
    latent: LatentRecord,
    example: Example,
    quantile: tuple[float | None, float | None, float | None],
) -> dict[str, Any]:
    least, most, share = quantile
    return {
        "tokens": [utf8(string) for string in example.strings],
        "values": values.window(latent, example),
        "quantileMax": most,
        "quantileMin": least,
        "quantileFraction": share,
    }


def _explanations(results: Sequence[Result]) -> Mapping[int, list[dict[str, Any]]]:
    """The phrases of each latent, each once."""
    found: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        if not isinstance(result, ComSemResult):
            continue
        for run in result.runs:
            if run.phrase is None:
                continue
            method = f"bae-lens_comsem-{result.settings.protocol}"
            own = {"text": utf8(run.phrase), "methodName": method, "modelName": utf8(result.judge)}
            if own not in found.setdefault(run.latent, []):
                found[run.latent].append(own)
    return found
