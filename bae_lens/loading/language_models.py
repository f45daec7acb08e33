"""Language models by name: the one place where this package has one loaded.

A name and its options come from the metadata of a saved SAE or from a config file, which somebody else
may have written. They are data, and stay data: of the options only those are taken that choose how
weights are read (``OPTIONS``), and no file of a model's folder or repository is run, whatever it or
TransformerLens asks for. Who wants that says so: ``trust_remote_code=True``, or ``--trust_remote_code``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.dynamic_module_utils as dynamic_modules
from sae_lens.load_model import load_model as sae_lens_load_model
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.loading_from_pretrained import make_model_alias_map

from bae_lens import offline as demo
from bae_lens.checks.fields import Device, Flag, OneOf, Rule, Text, check, shown, whole
from bae_lens.checks.suggest import did_you_mean
from bae_lens.loading.hub import is_about_the_hub, why_not_found
from bae_lens.loading.model_folders import BRIDGE_CLASSES, load_folder

logger = logging.getLogger(__name__)

_CLASSES = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM")
_DTYPES = ("float32", "float16", "bfloat16", "float64")


class _Dtype:
    """A number type of weights, by name or as torch has it."""

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return f"one of {', '.join(_DTYPES)}, auto"

    def read(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return value
        name = value.removeprefix("torch.") if isinstance(value, str) else ""
        if name not in (*_DTYPES, "auto"):
            raise ValueError
        return name


class _Placement:
    """Where accelerate puts the parts of a model: a word of its own, a device, or no choice."""

    _WORDS = ("auto", "balanced", "balanced_low_0", "sequential")

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return f"one of {', '.join(self._WORDS)}, a device or None"

    def read(self, value: Any) -> Any:
        return value if value is None else Device(self._WORDS).read(value)


# Flags and numbers of TransformerLens, then of transformers. What is not here reaches other files, other
# machines or code: cache_dir, proxies, token, tokenizer, quantization_config, weights_only, use_kernels …
OPTIONS: Mapping[str, Rule] = {
    "fold_ln": Flag(),
    "center_writing_weights": Flag(),
    "center_unembed": Flag(),
    "fold_value_biases": Flag(),
    "refactor_factored_attn_matrices": Flag(),
    "move_to_device": Flag(),
    "default_prepend_bos": Flag(or_none=True),
    "default_padding_side": OneOf(("left", "right", None)),
    "checkpoint_index": whole(None, or_none=True),
    "checkpoint_value": whole(or_none=True),
    "first_n_layers": whole(1, or_none=True),
    "n_ctx": whole(1, or_none=True),
    "n_devices": whole(1),
    "dtype": _Dtype(),
    "torch_dtype": _Dtype(),
    "revision": Text(or_none=True, may_be_empty=False),
    # Any other is the name of a repository of kernels, which is code.
    "attn_implementation": OneOf(("eager", "sdpa", "flash_attention_2", "flex_attention", None)),
    "device_map": _Placement(),
    "low_cpu_mem_usage": Flag(or_none=True),
    "load_in_8bit": Flag(),
    "load_in_4bit": Flag(),
    "local_files_only": Flag(),
    "use_safetensors": Flag(or_none=True),
}


def load_model(
    model_name: Any,
    model_class_name: Any = "HookedTransformer",
    *,
    device: Any = "cpu",
    options: Mapping[str, Any] | None = None,
    hook_names: list[str] | None = None,
    source: str = "The config",
    trust_remote_code: bool = False,
) -> HookedRootModule:
    """A language model by name: from PyPI (``bae-lens/…``), a folder or the hub.

    A name that is not one of ``bae-lens/`` is logged before anything is loaded. A folder that is asked
    for as a ``TransformerBridge`` may hold an encoder, with a classification head or without, or a causal
    language model: see ``bae_lens.loading.model_folders``. Of such a folder no code is ever run, whatever
    is trusted.

    Args:
        model_name: a name that TransformerLens or the hub knows, or a folder.
        model_class_name: SAELens' name of the class.
        device: where to put it.
        options: for its ``from_pretrained``.
        hook_names: those that are wanted, of a model of transformers.
        source: who named the model, at the beginning of messages: a file's path, or a word.
        trust_remote_code: take all options as they stand, and let the code of the model's folder or
            repository run.

    Raises:
        ValueError: if an option is not one that is taken from a file, the model cannot be found or
            read, or it would need code of its own.
        ImportError: if a ``bae-lens/`` name is given and its package is missing.
    """
    name = check(f"{source}: model_name", model_name, Text(may_be_empty=False))
    class_name = check(f"{source}: model_class_name", model_class_name, Text(may_be_empty=False))
    # Anything may stand there; what has to be a mapping of names is told in checked_options.
    options = dict(options or {}) if trust_remote_code else checked_options(options, source)
    revision = options.get("revision")
    logger.log(
        # A package that was installed is nobody else's.
        logging.DEBUG if name.startswith("bae-lens/") else logging.INFO,
        "Loading the language model %s (%s%s)",
        shown(name),
        class_name,
        f", revision {shown(revision)}" if revision else "",
    )
    ours = demo.load_model(name, class_name, device=device, **options)
    if ours is not None:
        return ours  # pyright: ignore[reportReturnType]  # a bridge is one by behavior
    if class_name in BRIDGE_CLASSES:
        return _load_bridge(name, class_name, device, options, source)
    if class_name not in _CLASSES:
        raise ValueError(
            f"{source}: model_class_name must be one of {', '.join(_CLASSES)}, or {BRIDGE_CLASSES[0]} for a "
            f"folder; got {shown(class_name)}."
        )
    if trust_remote_code:
        options["trust_remote_code"] = True
    try:
        with _any_code() if trust_remote_code else _no_foreign_code():
            return sae_lens_load_model(
                class_name,
                name,
                device=device,
                model_from_pretrained_kwargs=options,
                hook_names=hook_names,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Of tokenizers, of the hub's validators: no list of them is whole.
        raise ValueError(_why_not(name, class_name, source, error)) from error


def _load_bridge(
    name: str, class_name: str, device: Any, options: Mapping[str, Any], source: str
) -> HookedRootModule:
    if not is_folder(name):
        raise ValueError(
            f"{source} names the language model {shown(name)} ({class_name}), which is no folder here. A "
            f"{BRIDGE_CLASSES[0]} is made of a folder that save_pretrained wrote, or of {demo.MODEL_NAME} and "
            f"{demo.ENCODER_NAME}."
        )
    with reading_as_data(name, class_name, source):
        return load_folder(Path(name), device, options)  # pyright: ignore[reportReturnType]


@contextmanager
def reading_as_data(name: str, class_name: str, source: str) -> Iterator[None]:
    """No code of a model's folder or repository is run in the block, and what fails is told in one sentence.

    Args:
        name: of the model.
        class_name: as what it is loaded.
        source: who named it, at the beginning of the message.

    Raises:
        ValueError: in place of what libraries raise over files that are damaged, foreign or not there.
    """
    try:
        with _no_foreign_code():
            yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(_why_not(name, class_name, source, error)) from error


def check_named_folder(name: Any, class_name: Any, source: str) -> None:
    """That no file of somebody else has a folder of this machine opened as a TransformerBridge.

    Args:
        name: of the model, in the metadata of a saved SAE.
        class_name: SAELens' name of its class there.
        source: the file, at the beginning of the message.

    Raises:
        ValueError: if it would. The message shows the folder, and how to say yes.
    """
    if class_name in BRIDGE_CLASSES and isinstance(name, str) and is_folder(name):
        raise ValueError(
            f"{source} names as its language model a folder on this machine, {name!r} ({class_name}). "
            "What a file names is not opened unasked: if that is the folder you mean, say so with "
            f"--model {name!r} (in Python: model_name={name!r})."
        )


def is_folder(name: str) -> bool:
    """Whether a model's name is that of a folder here."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # Too long for a path, or with a zero byte.
        return False


def checked_options(options: Any, source: str) -> dict[str, Any]:
    """Options for ``from_pretrained`` that somebody else may have written.

    An object that no file can hold, such as a tokenizer, is from the caller's own code, and stays.

    Raises:
        ValueError: if they are no options by name, or one is not among ``OPTIONS`` or has a value that
            it cannot have.
    """
    if options is None:
        return {}
    field = "model_from_pretrained_kwargs"
    if not isinstance(options, Mapping):
        raise ValueError(f"{source}: {field} must be options by name; got {shown(options)}.")
    found: dict[str, Any] = {}
    for name, value in options.items():
        rule = OPTIONS.get(name)
        if rule is not None:
            found[name] = check(f"{source}: {field}.{name}", value, rule)
        elif not _from_a_file(value):
            found[name] = value
        # False asks for nothing.
        elif name != "trust_remote_code" or value not in (False, None):
            raise ValueError(
                f"{source} asks for {field}.{name} = {shown(value)}, which may reach other files or run "
                "code of somebody else, and is not taken from a file. Take it out or, if you trust who "
                "made the model and this file, give --trust_remote_code (in Python: "
                "trust_remote_code=True)."
            )
    return found


def _from_a_file(value: Any) -> bool:
    """Whether JSON or YAML could hold it."""
    return value is None or isinstance(value, (str, bytes, int, float, list, tuple, Mapping))


# Code of a model's folder or repository


class _ForeignCode(ValueError):
    """Something would have been run."""


# What is changed below is shared by all threads.
_lock = threading.RLock()


@contextmanager
def _no_foreign_code() -> Iterator[None]:
    """Nothing of a model's folder or repository is run by what is called in the block.

    Options are not enough for that: TransformerLens asks for remote code by itself, by the names of
    some models and of the architectures in a folder's config.json (Qwen3, Phi), and unpickles the
    weights of some; transformers asks whoever sits at a terminal. So the functions themselves refuse by
    which transformers fetches and runs a file, and torch reads plain weights only.
    """

    def refuse(name: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
        raise _ForeignCode

    names = ("get_cached_module_file", "get_class_in_module", "TIME_OUT_REMOTE_CODE")
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _lock:
        before, pickles = (
            {name: getattr(dynamic_modules, name) for name in names},
            variable in os.environ,
        )
        setting = os.environ.get(variable, "")
        dynamic_modules.get_cached_module_file = refuse
        dynamic_modules.get_class_in_module = refuse
        dynamic_modules.TIME_OUT_REMOTE_CODE = 0  # No question at the terminal.
        os.environ[variable] = "1"
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(dynamic_modules, name, value)
            if pickles:
                os.environ[variable] = setting
            else:
                del os.environ[variable]


@contextmanager
def _any_code() -> Iterator[None]:
    yield


def _why_not(name: str, class_name: str, source: str, error: BaseException) -> str:
    """One sentence or two for whoever gave the name."""
    what = f"{source} names the language model {shown(name)} ({class_name})"
    reason = " ".join(str(error).split())
    if isinstance(error, _ForeignCode) or "trust_remote_code" in reason:
        return (
            f"{what}, which can be loaded only by running code from its folder or repository. If you "
            "trust who made it, give --trust_remote_code (in Python: trust_remote_code=True)."
        )
    works = (
        "Give another one (--model, or --model_name of a training run): a folder, or "
        f"{demo.MODEL_NAME} and {demo.ENCODER_NAME}, which need no hub"
    )
    if not _exists(name) and is_about_the_hub(error):
        return f"{what}, which is no folder here, and {why_not_found(error)}. {works}."
    if class_name == "HookedTransformer" and "not found. Valid official" in reason:
        if _exists(name):
            return (
                f"{what}. TransformerLens makes a HookedTransformer of models whose names it knows, not "
                "of a folder: load it as AutoModelForCausalLM (metadata.model_class_name, or "
                f"--model_class_name). {works}."
            )
        near = did_you_mean(name.lower()[:200], make_model_alias_map())
        return f"{what}, which is no folder here and no name that TransformerLens knows. {near} {works}."
    return f"{what}, which cannot be loaded: {_short(error)}. {works}."


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # Too long for a path, or with a zero byte.
        return False


def _short(error: BaseException) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 240 else f"{reason[:239]}…"
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return (kind + reason).rstrip(".")
