"""What a run's config has to be, found out before any model is loaded; and what it says of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.util import str_to_dtype

from bae_lens.activations.collection import check_collection
from bae_lens.activations.text_store import check_positions
from bae_lens.distributed import n_ranks
from bae_lens.fingerprint import files_sha256
from bae_lens.loading.language_models import is_folder
from bae_lens.loading.model_folders import BRIDGE_CLASSES

# Of SAELens' config and of CrossLayerRunnerConfig.
_ROW_FIELDS = (
    *("model_name", "model_class_name", "model_from_pretrained_kwargs", "model_kwargs"),
    *("autocast_lm", "hook_name", "hook_name_out", "hook_head_index"),
    *("dataset_path", "text_unit", "use_chat_formatting"),
    *("use_cached_activations", "cached_activations_path"),
    *("context_size", "sequence_length", "seqpos_slice", "store_batch_size_prompts"),
    *("prepend_bos", "exclude_special_tokens", "sequence_separator_token"),
    "disable_concat_sequences",
)
PATH_FIELDS = (
    *("output_path", "checkpoint_path", "resume_from_checkpoint", "from_pretrained_path"),
    "cached_activations_path",
)


def check_config(cfg: Any, config_class: type, has_second_hook: bool = False) -> None:
    """
    Raises:
        ValueError: if a runner is given anything else than the config of its kind, or a path in it
            is empty.
    """
    if isinstance(cfg, config_class) and hasattr(cfg, "hook_name_out") == has_second_hook:
        for name in PATH_FIELDS:
            # The working directory, to whoever opens it.
            if getattr(cfg, name, None) == "":
                raise ValueError(f"{name} must be a path or None; got ''.")
        return
    if isinstance(cfg, config_class):
        expected = "a CrossLayerRunnerConfig" if has_second_hook else "a config of one hook point"
        hint = "CrossLayerTrainingRunner takes those of two, TrainingRunner those of one."
    else:
        expected = f"a {config_class.__name__}"
        hint = (
            "What load_config returns is trained by its own run(), with what it says of replay."
            if hasattr(cfg, "replay_tokens") and hasattr(cfg, "runner")
            else "Read a file with load_config, and call run() of what it returns."
        )
    raise ValueError(f"cfg must be {expected}; got a {type(cfg).__name__}. {hint}")


def check_batch(cfg: LanguageModelSAERunnerConfig[Any], replay_tokens: int | None) -> None:
    batch = cfg.train_batch_size_tokens
    check_positions(cfg.context_size, cfg.seqpos_slice, cfg.prepend_bos, cfg.exclude_special_tokens)
    if replay_tokens is not None:
        if replay_tokens < batch:
            raise ValueError(
                f"replay_tokens is {replay_tokens}, less than one batch "
                f"(train_batch_size_tokens = {batch}). Raise the one or lower the other."
            )
        if cfg.prefetch_llm_batches:
            raise ValueError(
                "prefetch_llm_batches has nothing to run ahead of when activations are replayed; "
                "set it to false, or replay_tokens to null."
            )
        return
    positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    buffer = cfg.n_batches_in_buffer * positions
    # Each rank has a buffer of its own for its share of the batch.
    batch //= n_ranks()
    if batch > buffer:
        of_a_rank = "" if n_ranks() == 1 else f" for each of {n_ranks()} processes"
        raise ValueError(
            f"train_batch_size_tokens is {batch}{of_a_rank}, but the buffer holds only {buffer} tokens "
            f"(n_batches_in_buffer = {cfg.n_batches_in_buffer} × {positions} positions). Set "
            f"n_batches_in_buffer to at least {-(-batch // positions)}, or lower the batch size."
        )


def check_replay_path(
    cfg: LanguageModelSAERunnerConfig[Any],
    replay_tokens: int | None,
    path: str | Path,
    outlier_multiple: float | None = None,
) -> None:
    if replay_tokens is None:
        raise ValueError(
            f"replay_path is {str(path)!r}, but nothing is replayed: replay_tokens is null. Say how "
            "many tokens to collect, or set replay_path to null."
        )
    if str(path) == "":
        raise ValueError(
            "replay_path must be a folder, or null to keep activations in memory; got ''."
        )
    check_collection(path, describe_rows(cfg, outlier_multiple) | {"replay_tokens": replay_tokens})


def describe_rows(
    cfg: LanguageModelSAERunnerConfig[Any], outlier_multiple: float | None = None
) -> dict[str, Any]:
    """Everything in a config that changes what is collected; fields that it does not have are None."""
    widths = {name: getattr(cfg.sae, name, None) for name in ("d_in", "d_out")}
    # Collections of before there was such a thing lack it, which is the same as None.
    others = {"dtype": str(str_to_dtype(cfg.dtype)), "exclude_outlier_tokens": outlier_multiple}
    rows = {name: getattr(cfg, name, None) for name in _ROW_FIELDS} | widths | others
    # A name stands for its weights. A folder may be written anew, by ``bae-lens finetune`` say.
    if cfg.model_class_name in BRIDGE_CLASSES and is_folder(cfg.model_name):
        rows["model_sha256"] = files_sha256(Path(cfg.model_name).glob("*.safetensors"))
    return rows


def check_width(
    cfg: LanguageModelSAERunnerConfig[Any], field: str, hook_name: str, width: int
) -> None:
    """Raises ``ValueError`` if a width in the config of the autoencoder is not that of its hook."""
    if width != getattr(cfg.sae, field):
        raise ValueError(
            f"sae.{field} is {getattr(cfg.sae, field)}, but the activations at {hook_name!r} have "
            f"width {width}. Set sae.{field} to {width}."
        )
