"""What decides a run, so that a checkpoint is gone on from by no other one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch
from datasets import IterableDataset
from sae_lens.util import str_to_dtype

# Where a run takes place, what it says and what it leaves behind; or what other fields hold too.
_OF_NO_ACCOUNT = frozenset(
    (
        *("device", "llm_device", "act_store_device", "prefetch_llm_batches", "streaming"),
        *("compile_llm", "llm_compilation_mode", "compile_sae", "sae_compilation_mode"),
        *("logger", "verbose", "n_checkpoints", "checkpoint_path", "save_final_checkpoint"),
        *("output_path", "resume_from_checkpoint", "n_eval_batches", "eval_batch_size_prompts"),
        *("sae_lens_version", "sae_lens_training_version", "dataset_trust_remote_code"),
        *("hook_eval", "metadata"),
    )
)
_TEXT_COLUMNS = ("tokens", "input_ids", "text", "problem", "conversation")
_N_ROWS = 16
_N_WEIGHTS = 64
# Other devices and compilers round weights differently that a model's class works out.
_TOLERANCE = 1e-3


def describe_run(cfg: Any) -> dict[str, Any]:
    """The fields of a runner's config that decide what comes out of it, as JSON holds them.

    Args:
        cfg: a runner's config; the autoencoder's fields are called ``sae.…``.
    """
    return _deciding(cfg.to_dict())


def differing_fields(there: Mapping[str, Any], cfg: Any) -> list[str]:
    """In what a run of another config differs from one of this, each as "field is … there and … here".

    Two things may differ that are of no account: where a run takes place (devices, compilation,
    logging, paths and number of what is written), and ``training_tokens`` where the learning rate
    does not depend on it.

    Args:
        there: the other config, of ``runner_cfg.json``. A field that it lacks, since an earlier
            version wrote it, has its default.
        cfg: a runner's config.
    """
    here = describe_run(cfg)
    defaults = _defaults(cfg) | {f"sae.{name}": value for name, value in _defaults(cfg.sae).items()}
    other = defaults | _deciding(there)
    is_free = cfg.lr_scheduler_name == "constant" and cfg.lr_decay_steps == 0
    names = [name for name in here if name in other and not (is_free and name == "training_tokens")]
    return [
        f"{name} is {other[name]!r} there and {here[name]!r} here"
        for name in names
        if other[name] != here[name]
    ]


def _deciding(content: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    sae = plain.pop("sae", None)
    deciding = {k: v for k, v in plain.items() if k not in _OF_NO_ACCOUNT}
    if isinstance(sae, dict):
        deciding |= {f"sae.{k}": v for k, v in sae.items() if k not in _OF_NO_ACCOUNT}
    for name in ("dtype", "sae.dtype"):
        if isinstance(deciding.get(name), str):
            deciding[name] = str(str_to_dtype(deciding[name]))
    if isinstance(kwargs := deciding.get("model_from_pretrained_kwargs"), dict):
        deciding["model_from_pretrained_kwargs"] = {
            k: v for k, v in kwargs.items() if k not in ("device", "device_map", "n_devices")
        }
    if not deciding.get("use_cached_activations"):
        deciding.pop("cached_activations_path", None)
    return deciding


def _defaults(cfg: Any) -> dict[str, Any]:
    plain = {
        f.name: f.default
        for f in fields(cfg)
        if f.default is not MISSING and f.name not in _OF_NO_ACCOUNT
    }
    return json.loads(json.dumps(plain, default=str))


def describe_text(dataset: Any) -> dict[str, Any] | None:
    """Which text a dataset holds: its number of rows, and a hash of some of them.

    Returns:
        None for a dataset that cannot be looked into twice.
    """
    if isinstance(dataset, IterableDataset):
        rows: Iterator[Any] = itertools.islice(iter(dataset), _N_ROWS)
        n_rows = None
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        n_rows = len(dataset)
        spread = torch.linspace(0, n_rows - 1, min(n_rows, 2 * _N_ROWS)).long().tolist()
        rows = (dataset[i] for i in spread)
    else:
        return None
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(_text_of(row), default=_as_plain, sort_keys=True).encode())
    return {"rows": n_rows, "sha256_of_some": digest.hexdigest()}


def _text_of(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    return next((row[name] for name in _TEXT_COLUMNS if name in row), dict(row))


def _as_plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


@torch.no_grad()
def describe_model(model: torch.nn.Module) -> list[float]:
    """Some of a model's weights, spread over all of it."""
    parameters = [p for p in model.parameters() if p.numel() and p.is_floating_point()]
    spread = torch.linspace(0, len(parameters) - 1, min(len(parameters), _N_WEIGHTS)).long()
    chosen = (parameters[i].flatten() for i in spread.tolist())
    return [flat[len(flat) // 2].item() for flat in chosen]


def is_same_model(there: list[float], here: list[float]) -> bool:
    """Whether two descriptions are of one model, up to rounding."""
    if len(there) != len(here):
        return False
    a, b = torch.tensor(there), torch.tensor(here)
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * float(b.abs().max()))
