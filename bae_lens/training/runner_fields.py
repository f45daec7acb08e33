"""What the fields of SAELens' runner configs may be.

SAELens takes what it is given: a run of −5 tokens is "Saved", a rate of NaN fails once the model has
read all the text. So the fields are checked before any model is loaded, from a file as in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from sae_lens.constants import DTYPE_MAP

from bae_lens.checks.fields import Device, Flag, Number, OneOf, Rule, Text, check, shown, whole

# Fields whose quotient are the steps of a run; a config has one of the two pairs.
STEPS = (("training_tokens", "train_batch_size_tokens"), ("training_samples", "batch_size"))


@dataclass(frozen=True)
class _MaybeDevice:
    """A device or None."""

    words: tuple[str, ...] = ()

    def expected(self, value: Any) -> str:
        return f"{Device(self.words).expected(value)}, or None"

    def read(self, value: Any) -> Any:
        return None if value is None else Device(self.words).read(value)


class _MaybePath:
    """A path or None."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "a path or None"

    def read(self, value: Any) -> Any:
        if value is not None and (not isinstance(value, (str, PathLike)) or "\0" in str(value)):
            raise ValueError
        return value


class _FlagOrCount:
    """SAELens' ``prefetch_llm_batches``."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "True, False or a whole number of at least 0"

    def read(self, value: Any) -> Any:
        return value if isinstance(value, bool) else whole().read(value)


class _SpecialTokens:
    """SAELens' ``exclude_special_tokens``."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "True, False or a list of ids of tokens"

    def read(self, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return [whole().read(i) for i in value]


class _Schedule:
    """The name of a schedule of the learning rate, however it is written."""

    _NAMES = ("constant", "cosineannealing", "cosineannealingwarmrestarts")

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return f"one of {', '.join(self._NAMES)}"

    def read(self, value: Any) -> Any:
        if not isinstance(value, str) or value.lower() not in self._NAMES:
            raise ValueError
        return value


_SOME, _ANY, _TEXT = whole(1), whole(), Text(may_be_empty=False)
_RATE = Number(least=0)
_SHARE = Number(least=0, most=1)
_DECAY = Number(least=0, below=1)

# Of LanguageModelSAERunnerConfig, CrossLayerRunnerConfig and SyntheticSAERunnerConfig, by name.
RUNNER_RULES: Mapping[str, Rule] = {
    "model_name": _TEXT,
    "model_class_name": _TEXT,
    "hook_name": _TEXT,
    "hook_name_out": Text(),
    "hook_head_index": whole(or_none=True),
    "dataset_path": Text(),
    "sequence_separator_token": whole(or_none=True, words=("bos", "eos", "sep")),
    "dtype": OneOf(tuple(DTYPE_MAP)),
    "lr_scheduler_name": _Schedule(),
    "llm_compilation_mode": Text(or_none=True),
    "sae_compilation_mode": Text(or_none=True),
    "prefetch_llm_batches": _FlagOrCount(),
    "exclude_special_tokens": _SpecialTokens(),
    "device": Device(),
    "llm_device": _MaybeDevice(),
    "act_store_device": _MaybeDevice(("with_model",)),
    "seed": whole(None),
    "lr": _RATE,
    "lr_end": Number(least=0, or_none=True),
    "adam_beta1": _DECAY,
    "adam_beta2": _DECAY,
    "dead_feature_threshold": _RATE,
    "activations_mixing_fraction": _SHARE,
    "eval_batch_size_prompts": whole(1, or_none=True),
    "initialization_tokens": whole(2),
    **dict.fromkeys(
        (
            *("context_size", "training_tokens", "train_batch_size_tokens"),
            *("training_samples", "batch_size", "eval_samples"),
            *("store_batch_size_prompts", "n_batches_in_buffer", "n_batches_for_norm_estimate"),
            *("n_restart_cycles", "dead_feature_window", "feature_sampling_window"),
        ),
        _SOME,
    ),
    **dict.fromkeys(
        ("lr_warm_up_steps", "lr_decay_steps", "n_eval_batches", "n_checkpoints", "eval_frequency"),
        _ANY,
    ),
    **dict.fromkeys(
        (
            *(
                "streaming",
                "is_dataset_tokenized",
                "use_chat_formatting",
                "dataset_trust_remote_code",
            ),
            *("use_cached_activations", "disable_concat_sequences", "prepend_bos", "verbose"),
            *(
                "autocast",
                "autocast_lm",
                "autocast_sae",
                "autocast_data",
                "compile_llm",
                "compile_sae",
            ),
            *("save_final_checkpoint", "save_synthetic_model", "run_final_eval"),
        ),
        Flag(),
    ),
    **dict.fromkeys(
        (
            *("checkpoint_path", "output_path", "resume_from_checkpoint", "from_pretrained_path"),
            *("cached_activations_path", "replay_path"),
        ),
        _MaybePath(),
    ),
    "replay_tokens": whole(1, or_none=True),
}
LOGGER_RULES: Mapping[str, Rule] = dict.fromkeys(
    ("wandb_log_frequency", "eval_every_n_wandb_logs"), _SOME
)


def check_runner(cfg: Any, **others: Any) -> None:
    """Every field of a runner's config that there is a rule for, and Python's own types for numpy's.

    Args:
        cfg: any of the three.
        **others: arguments of the runner, by name.

    Raises:
        ValueError: for the first field that cannot be what it is.
    """
    for config, rules, prefix in ((cfg, RUNNER_RULES, ""), (cfg.logger, LOGGER_RULES, "logger.")):
        for name, rule in rules.items():
            if hasattr(config, name):
                given = getattr(config, name)
                value = check(f"{prefix}{name}", given, rule)
                if value is not given:
                    setattr(config, name, value)
    for name, value in others.items():
        check(name, value, RUNNER_RULES[name])
    check_steps(cfg)
    _check_schedule(cfg)


def check_section(section: str, values: Mapping[str, Any]) -> None:
    """``check_runner`` for a section of a file, before SAELens makes a config of it.

    Raises:
        ValueError: for the first field that cannot be what it is.
    """
    rules = {"": RUNNER_RULES, "logger": LOGGER_RULES}.get(section, {})
    for name, value in values.items():
        if name in rules:
            check(f"{section}.{name}" if section else name, value, rules[name])


def check_steps(cfg: Any) -> None:
    """That there is a step to train.

    Raises:
        ValueError: if there are fewer tokens than one takes.
    """
    [(total, batch_size)] = [pair for pair in STEPS if hasattr(cfg, pair[0])]
    if getattr(cfg, total) < getattr(cfg, batch_size):
        raise ValueError(
            f"{total} is {getattr(cfg, total)}, less than one step takes ({batch_size} = {getattr(cfg, batch_size)}), so that "
            "nothing would be trained. Raise the one or lower the other."
        )


def _check_schedule(cfg: Any) -> None:
    # A decay is a share of what it begins at, and SAELens divides by the one or refuses the other late.
    if cfg.lr_decay_steps > 0 and not (cfg.lr > 0 and (cfg.lr_end is None or cfg.lr_end > 0)):
        raise ValueError(
            "lr and lr_end must be positive numbers where there are lr_decay_steps; got "
            f"{shown(cfg.lr)} and {shown(cfg.lr_end)}."
        )
