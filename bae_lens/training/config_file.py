"""Configs of training runs from YAML and JSON files, with SAELens' names for everything.

A file holds the fields of SAELens' ``LanguageModelSAERunnerConfig``, those of the autoencoder in a
section ``sae`` (with its ``architecture``) and those of W&B in a section ``logger``; what it leaves
out keeps SAELens' default. With a section ``synthetic_model`` it is a ``SyntheticSAERunnerConfig``.
For an architecture of two hook points it is a ``CrossLayerRunnerConfig``. Two keys are ours:
``replay_tokens`` and ``replay_path``, see ``TrainingRunner``; and ``lr_warm_up_steps`` and
``lr_decay_steps`` may be shares of the run, as ``20%``, so that a longer run needs no other ones. The ``runner_cfg.json`` that SAELens
writes beside an autoencoder is such a file too.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from fractions import Fraction
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeGuard, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAE
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.synthetic import (
    SyntheticModelConfig,
    SyntheticSAERunnerConfig,
    SyntheticSAERunnerResult,
    ZipfianFiringProbabilityConfig,
)
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.checks.fields import check, shown
from bae_lens.checks.suggest import did_you_mean
from bae_lens.files.yaml_file import parse_yaml, read_config
from bae_lens.loading.language_models import checked_options
from bae_lens.training.cross_layer_runner import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    is_cross_layer,
)
from bae_lens.training.run_checks import PATH_FIELDS
from bae_lens.training.runner import TrainingRunner
from bae_lens.training.runner_fields import RUNNER_RULES, STEPS, check_section
from bae_lens.training.shipped_configs import SUFFIXES, list_configs
from bae_lens.training.synthetic_runner import SyntheticTrainingRunner

logger = logging.getLogger(__name__)

RunnerConfig = LanguageModelSAERunnerConfig[Any] | SyntheticSAERunnerConfig[Any]

_SECTIONS = ("sae", "logger", "synthetic_model")
# The name of the section that is not one: the runner's own fields.
_TOP = ""
# What TrainingRunner is given beside the config.
_OURS: dict[str, Any] = {"replay_tokens": int | None, "replay_path": str | None}
# Steps that may be a share of all of them.
_SHARED = ("lr_warm_up_steps", "lr_decay_steps")


class RunConfig(NamedTuple):
    """What a config file says: ``run()`` trains as it says.

    Attributes:
        runner: SAELens' config, which knows nothing of what follows.
        replay_tokens: for ``TrainingRunner``.
        replay_path: for ``TrainingRunner``.
    """

    runner: RunnerConfig
    replay_tokens: int | None = None
    replay_path: str | None = None

    def run(
        self,
        override_dataset: Any = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> TrainingSAE[Any]:
        """Train with all that the config says, save, and return the SAE.

        Args:
            override_dataset: as for SAELens' runner; not for synthetic data.
            override_model: as for SAELens' runner; for synthetic data a ``SyntheticModel``.
            override_sae: as for SAELens' runner.
            trust_remote_code: as for ``TrainingRunner``.
        """
        runner = self.make_runner(
            override_dataset, override_model, override_sae, trust_remote_code=trust_remote_code
        )
        trained = runner.run()
        return trained.sae if isinstance(trained, SyntheticSAERunnerResult) else trained

    def make_runner(
        self,
        override_dataset: Any = None,
        override_model: Any = None,
        override_sae: TrainingSAE[Any] | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> TrainingRunner | SyntheticTrainingRunner:
        """The runner that ``run`` runs, by the kind of the config.

        Raises:
            ValueError: if synthetic data are to be replayed, or replaced by a dataset.
        """
        if isinstance(self.runner, SyntheticSAERunnerConfig):
            for name, value in (
                ("replay_tokens", self.replay_tokens),
                ("replay_path", self.replay_path),
                ("override_dataset", override_dataset),
            ):
                if value is not None:
                    raise ValueError(f"{name} is not for synthetic data; got {shown(value)}.")
            return SyntheticTrainingRunner(self.runner, override_model, override_sae)
        is_crossing = isinstance(self.runner, CrossLayerRunnerConfig)
        runner_class = CrossLayerTrainingRunner if is_crossing else TrainingRunner
        return runner_class(
            self.runner,  # pyright: ignore[reportArgumentType]
            override_dataset,
            override_model,
            override_sae,
            replay_tokens=self.replay_tokens,
            replay_path=self.replay_path,
            **({"trust_remote_code": True} if trust_remote_code else {}),
        )


def load_config(
    source: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
) -> RunConfig:
    """Read a config file, change some of its fields, and build SAELens' config from it.

    A file may be somebody else's. So of the options with which it has a model loaded only those are
    taken that cannot run code: see ``bae_lens.loading.language_models``.

    Args:
        source: path of a YAML or JSON file, or the name of a shipped config.
        overrides: field → value; a string is read as YAML, as from a command line; a share of the steps
            is of those that there are then. ``sae.d_sae`` is
            a field of a section; a name with no section is looked up in the runner's fields, then
            in ``sae``, ``logger`` and ``synthetic_model``. If ``architecture`` changes, fields that
            only the old one has are dropped, with a logged note.
        trust_remote_code: take all options as they stand.

    Raises:
        FileNotFoundError: if there is no such file or shipped config.
        ValueError: if the file is not YAML or JSON in UTF-8, or has a name twice; a field is unknown
            (the message has the nearest names), missing, or of a wrong type or range; an option may run
            code; or SAELens refuses a value.
    """
    content, name = _read(str(source))
    try:
        return build_config(content, overrides, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def build_config(
    content: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
) -> RunConfig:
    """``load_config`` for the content of a file."""
    content = copy.deepcopy(dict(content))
    overrides = {name.replace("-", "_"): value for name, value in (overrides or {}).items()}
    for name in ("architecture", "sae.architecture"):
        if name in overrides:
            _change_architecture(_section(content, "sae"), str(overrides.pop(name)))
    known = _known_fields(content)
    for name, value in overrides.items():
        section, field = _locate(name, known)
        hint = known[section].hints[field]
        values = content if section == _TOP else content[section]
        is_text = isinstance(value, str) and not (field in _SHARED and _is_share(value))
        values[field] = _parse(name, value, hint) if is_text else value
    _count_shares(content, known[_TOP])
    for section, config in known.items():
        values = content if section == _TOP else content[section]
        _check(section, config, values)
        check_section(section, values)
    for name in (*PATH_FIELDS, "replay_path"):
        if content.get(name) == "":
            raise ValueError(f"{name} must be a path or null; got ''.")
    if not trust_remote_code and content.get("model_from_pretrained_kwargs") is not None:
        options = content["model_from_pretrained_kwargs"]
        content["model_from_pretrained_kwargs"] = checked_options(options, "The config")
    ours = {name: content.pop(name, None) for name in _OURS}
    try:
        return RunConfig(_runner_class(content).from_dict(content), **ours)
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # What SAELens reads by itself: the sections inside synthetic_model.
        raise ValueError(f"SAELens cannot read it: {type(error).__name__}: {error}") from error


def _read(source: str) -> tuple[dict[str, Any], str]:
    """Content and file name of a path or a shipped config."""
    path = Path(source)
    # os.path: a name that is too long for one is no file either.
    if os.path.isfile(path):
        return read_config(path), source
    shipped = list_configs()
    if source in shipped:
        file = resources.files("bae_lens") / "configs" / f"{source}.yaml"
        with resources.as_file(file) as path:
            return read_config(path), f"{source}.yaml"
    if os.path.isdir(path):
        raise FileNotFoundError(f"{source} is a folder; give a YAML or JSON file.")
    siblings = path.parent.glob("*") if os.path.isdir(path.parent) else ()
    near = [str(file) for file in siblings if file.suffix in SUFFIXES]
    raise FileNotFoundError(
        f"There is no file {shown(source)}, nor a shipped config of that name (there are "
        f"{', '.join(shipped)}). {did_you_mean(source[:200], [*shipped, *near])}"
    )


def _parse(name: str, text: str, hint: Any) -> Any:
    """A command line's text as a value of a type; what YAML makes of it comes first."""
    if not text.strip() and name != "hook_name_out":
        raise ValueError(f"{name} is empty. Give it a value; null where there is to be none.")
    try:
        value = parse_yaml(text)
    except ValueError:
        value = text
    if text.lower() == "none":
        value = None
    try:
        return _coerce(name, value, hint)
    except ValueError:
        # A folder named 2024 is a number to YAML, and a string all the same.
        return _coerce(name, text, hint)


# Fields


class _Section(NamedTuple):
    config_class: type
    hints: dict[str, Any]  # field → type


def _runner_class(content: Mapping[str, Any]) -> type[RunnerConfig]:
    if "synthetic_model" in content:
        return SyntheticSAERunnerConfig
    architecture = content["sae"].get("architecture")
    is_known = isinstance(architecture, str) and architecture in SAE_TRAINING_CLASS_REGISTRY
    if is_known and is_cross_layer(architecture):
        return CrossLayerRunnerConfig
    return LanguageModelSAERunnerConfig


def _known_fields(content: dict[str, Any]) -> dict[str, _Section]:
    """The sections of this content; those that may be left out are added to it."""
    sae, _ = _section(content, "sae"), _section(content, "logger")
    runner_class = _runner_class(content)
    known = {
        _TOP: _fields_of(runner_class),
        "sae": _fields_of(_sae_config_class(sae.get("architecture"))),
        "logger": _fields_of(LoggingConfig),
    }
    known["sae"].hints["architecture"] = str
    if runner_class is not SyntheticSAERunnerConfig:
        known[_TOP].hints.update(_OURS)
    elif isinstance(content["synthetic_model"], dict):
        known["synthetic_model"] = _fields_of(SyntheticModelConfig)
        # SAELens has a default for it, and does not look there when it reads a dict.
        default = ZipfianFiringProbabilityConfig().to_dict()
        content["synthetic_model"].setdefault("firing_probability", default)
    return known


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.setdefault(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{name} must be a section of fields; got {shown(section)}.")
    return section


def _sae_config_class(architecture: str | None) -> type:
    if not isinstance(architecture, str) or architecture not in SAE_TRAINING_CLASS_REGISTRY:
        known = ", ".join(SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"sae.architecture must be one of {known}; got {shown(architecture)}.")
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _fields_of(config_class: type) -> _Section:
    hints = get_type_hints(config_class)
    # Not a field to be set as a whole: a section.
    names = {field.name for field in fields(config_class)} - {"sae", "logger"}
    return _Section(config_class, {name: _as_in_a_file(hints[name]) for name in sorted(names)})


def _as_in_a_file(hint: Any) -> Any:
    """The type with ``dict`` for every config class in it."""
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_as_in_a_file(part) for part in get_args(hint))]  # noqa: UP007
    is_class = isinstance(hint, type) and get_origin(hint) is None
    return dict[str, Any] if is_class and hint.__module__ != "builtins" else hint


def _change_architecture(sae: dict[str, Any], architecture: str) -> None:
    new = _fields_of(_sae_config_class(architecture)).hints
    old = _fields_of(_sae_config_class(sae.get("architecture", architecture))).hints
    dropped = [name for name in sae if name in old and name not in new]
    for name in dropped:
        del sae[name]
    if dropped:
        logger.warning(
            "architecture is now %r, which has no %s: dropped.", architecture, ", ".join(dropped)
        )
    sae["architecture"] = architecture


def _locate(name: str, known: dict[str, _Section]) -> tuple[str, str]:
    """Section and field of an override."""
    prefix, _, field = name.rpartition(".")
    for section in [prefix] if prefix else known:
        if section in known and field in known[section].hints:
            return section, field
    names = [
        _dotted(section, field) if prefix else field
        for section, config in known.items()
        for field in config.hints
    ]
    raise ValueError(f"Unknown field {shown(name)}. {did_you_mean(name[:200], names)}")


def _check(section: str, known: _Section, values: dict[str, Any]) -> None:
    """Refuse unknown and missing fields, and give every value the type of its field."""
    for name, value in values.items():
        if section == _TOP and name in _SECTIONS and isinstance(value, dict):
            continue
        if name not in known.hints:
            names = [_dotted(section, field) for field in known.hints]
            name = _dotted(section, str(name))
            raise ValueError(f"Unknown field {shown(name)}. {did_you_mean(name[:200], names)}")
        values[name] = _coerce(_dotted(section, name), value, known.hints[name])
    for field in fields(known.config_class):
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if not has_default and field.name not in values:
            raise ValueError(f"{_dotted(section, field.name)} is missing.")


def _is_share(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.strip().endswith("%")


def _count_shares(content: dict[str, Any], known: _Section) -> None:
    """Put numbers of steps where there are shares of them."""
    counted = Fraction(0)
    for name in _SHARED:
        value = content.get(name)
        if not _is_share(value):
            continue
        found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?) ?%", value.strip(), re.ASCII)
        share = Fraction(found[1]) / 100 if found else Fraction(2)
        if share > 1:
            raise ValueError(
                f"{name} must be a whole number of at least 0, or a share of the run's steps of 0% to "
                f"100%; got {shown(value)}."
            )
        counted += share
        if counted > 1:
            raise ValueError(f"{' and '.join(_SHARED)} make up more than the whole run.")
        [names] = [pair for pair in STEPS if pair[0] in known.hints]
        defaults = {field.name: field.default for field in fields(known.config_class)}
        total, batch_size = (
            check(own, _coerce(own, content.get(own, defaults[own]), int), RUNNER_RULES[own])
            for own in names
        )
        content[name] = int(share * (total // batch_size))


def _coerce(name: str, value: Any, hint: Any) -> Any:
    # Lax rules read 1e6 as an integer and a list as a tuple, but also true as the number 1.
    is_strict = isinstance(value, bool)
    try:
        return TypeAdapter(hint).validate_python(value, strict=is_strict)
    except ValidationError as error:
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        reason = error.errors()[0]["msg"]
        raise ValueError(
            f"{name} must be of type {expected}; got {shown(value)} ({reason})."
        ) from error


def _dotted(section: str, field: str) -> str:
    return f"{section}.{field}" if section else field
