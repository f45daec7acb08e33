"""The README of a repository of SAEs (its model card), from their configs and the metrics of ``bae-lens eval``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import ModelCardData
from sae_lens import SAE

from bae_lens.checks.fields import Number, is_valid
from bae_lens.hub.contents import SAEContents
from bae_lens.results import Table

_KINDS: Mapping[str, Callable[[Any], str]] = {
    "bae": lambda cfg: (
        "Binary Autoencoder (arXiv 2509.20997), "
        + ("one bit a latent" if cfg.n_levels == 1 else f"{cfg.n_levels} levels a latent")
    ),
    "clvq_vae": lambda _: "Cross-Layer VQ-VAE (arXiv 2506.20040), one code a token",
    "topk_transcoder": lambda cfg: f"TopK transcoder, k = {cfg.k}",
}
_NOT_MEASURED = "–"
_LONGEST_CELL = 100


def model_card(
    repo_id: str, saes: Mapping[str, SAEContents], license: str | None, revision: str | None
) -> str:
    """Markdown with the hub's header: what the SAEs are, where they read and write, what was measured, how to load
    them.

    Args:
        repo_id: the repository.
        saes: by their names in it.
        license: the hub's name of one; None leaves the field out, for the owner to fill in.
        revision: the branch that they are on; None is the repository's own.
    """
    packages = sorted({_package(contents.sae) for contents in saes.values()} - {"sae_lens"})
    tags = ["saelens", *(package.replace("_", "-") for package in packages)]
    header = ModelCardData(library_name="saelens", tags=tags, license=license).to_yaml()
    parts = [
        f"---\n{header}\n---",
        f"# {repo_id.rpartition('/')[2]}",
        "Autoencoders of a language model's activations, for [SAELens](https://github.com/decoderesearch/SAELens).",
        _what_they_are(saes),
        _measured(saes),
        _how_to_load(repo_id, next(iter(saes)), packages, revision),
        _what_they_read(saes),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _package(sae: SAE[Any]) -> str:
    """The package whose import registers the architecture."""
    return type(sae).__module__.partition(".")[0]


def _what_they_are(saes: Mapping[str, SAEContents]) -> str:
    head = ("id", "architecture", "language model", "hook point", "width", "latents")
    return Table(
        head, [(f"`{name}`", *_described(one.sae)) for name, one in saes.items()]
    ).markdown()


def _described(sae: SAE[Any]) -> list[str]:
    cfg: Any = sae.cfg
    architecture = cfg.architecture()
    kind = _KINDS[architecture](cfg) if architecture in _KINDS else f"`{architecture}`"
    reads, writes = cfg.metadata.hook_name, cfg.metadata.hook_name_out
    hook = _code(reads) if writes in (None, "", reads) else f"{_code(reads)} → {_code(writes)}"
    d_out = getattr(cfg, "d_out", None) or cfg.d_in
    width = f"{cfg.d_in:,}" if d_out == cfg.d_in else f"{cfg.d_in:,} → {d_out:,}"
    return [kind, _code(cfg.metadata.model_name), hook, width, f"{cfg.d_sae:,}"]


def _measured(saes: Mapping[str, SAEContents]) -> str:
    measured = {name: one.metrics for name, one in saes.items() if one.metrics}
    if not measured:
        return ""
    head = (
        *("id", "bits per token", "explained variance", "L0", "dense (> 10 %)", "dead"),
        *("CE loss with", "without", "tokens", "text"),
    )
    notes = (
        "Measured by `bae-lens eval`. Bits per token: what the code needs; of codes with real-valued magnitudes at the "
        "resolution in `eval_metrics.json`, or, with a +, of which latents fire alone. L0: latents on per token. Dense, "
        "dead: shares of the latents, as seen on these tokens. CE loss: of the language model in nats per token, with the "
        "reconstruction in place of the activation and without.",
    )
    return Table(
        head, [(f"`{name}`", *_numbers(own)) for name, own in measured.items()], notes
    ).markdown()


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    code, model, about = (
        group if isinstance(group := metrics.get(name), Mapping) else {}
        for name in ("code", "model_performance_preservation", "sae")
    )
    bits, mark = _number(code, "description_length"), ""
    if math.isnan(bits):
        bits, mark = _number(code, "support_entropy"), "+"
    return [
        _shown(bits, ",.0f") + (mark if not math.isnan(bits) else ""),
        _shown(_number(code, "explained_variance"), ".3f"),
        _shown(_number(code, "l0"), ",.1f"),
        _share(_number(code, "dense_share_10")),
        _share(_number(code, "dead_share")),
        _shown(_number(model, "ce_loss_with_sae"), ".3f"),
        _shown(_number(model, "ce_loss_without_sae"), ".3f"),
        _shown(_number(code, "n_tokens"), ",.0f"),
        _code(about.get("text")),
    ]


def _number(group: Mapping[str, Any], name: str) -> float:
    """NaN where it was not measured, or is no number."""
    value = group.get(name)
    return float(value) if value is not None and is_valid(value, Number()) else math.nan


def _shown(value: float, form: str) -> str:
    return _NOT_MEASURED if math.isnan(value) else format(value, form)


def _share(value: float) -> str:
    return _NOT_MEASURED if math.isnan(value) else f"{100 * value:.1f} %"


def _how_to_load(repo_id: str, sae_id: str, packages: list[str], revision: str | None) -> str:
    imports = "".join(f"import {name}  # registers the architecture\n" for name in packages)
    if revision is None:
        lines = [
            "from sae_lens import SAE",
            "",
            f'sae = SAE.from_pretrained("{repo_id}", "{sae_id}")',
        ]
        before = "SAELens loads them by id."
    else:
        lines = [
            "from huggingface_hub import snapshot_download",
            "from sae_lens import SAE",
            "",
            f'folder = snapshot_download("{repo_id}", revision="{revision}", allow_patterns="{sae_id}/*")',
            f'sae = SAE.load_from_disk(f"{{folder}}/{sae_id}")',
        ]
        before = f"They are on the branch `{revision}`, which `SAE.from_pretrained` cannot name."
    needs = "".join(
        f" This needs the package `{name.replace('_', '-')}` installed and imported before: without it SAELens does not "
        "know the architecture."
        for name in packages
    )
    code = "\n".join(lines)
    return f"## Load\n\n{before}{needs}\n\n```python\n{imports}{code}\n```"


def _what_they_read(saes: Mapping[str, SAEContents]) -> str:
    """How a text has to become tokens, without which activations are others."""
    rows = []
    for name, one in saes.items():
        known: Any = one.sae.cfg.metadata
        left_out = known.exclude_special_tokens
        rows.append(
            (
                f"`{name}`",
                _word(known.prepend_bos),
                "chosen ones"
                if isinstance(left_out, list) and left_out
                else _word(left_out or False),
                _NOT_MEASURED if known.context_size is None else f"{known.context_size:,}",
                _code(known.dataset_path),
            )
        )
    head = (
        "id",
        "texts begin with BOS",
        "special tokens left out",
        "tokens of a context",
        "trained on",
    )
    return f"## Trained with\n\n{Table(head, rows).markdown()}"


def _word(value: Any) -> str:
    return _NOT_MEASURED if value is None else "yes" if value else "no"


def _code(value: Any) -> str:
    """A name that may be anybody's as inline code on one line, which ends no cell."""
    if not isinstance(value, str) or not value:
        return _NOT_MEASURED
    text = " ".join(value.replace("`", "'").split())
    text = text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
    return f"`{''.join(c for c in text if c.isprintable())}`"
