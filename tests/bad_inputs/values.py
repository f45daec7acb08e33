"""Values that no field and no option can have: configs in Python, in files and on the command line."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, get_type_hints

import yaml
from transformers import BertModel

from bae_lens import (
    BAEConfig,
    CLVQVAEConfig,
    TopKTranscoderConfig,
    TrainingBAEConfig,
    TrainingCLVQVAEConfig,
    TrainingRunner,
    TrainingTopKTranscoderConfig,
    load_config,
)
from bae_lens import offline as demo
from bae_lens.concept_ablation import AblationSettings
from bae_lens.examples import ExampleSettings
from bae_lens.finetuning import FinetuningSettings
from bae_lens.quiz.questions import QuizSettings
from bae_lens.scoring import (
    ComSemSettings,
    EndpointSettings,
    IntruderSettings,
    Limits,
    RankingSettings,
    SparseProbingSettings,
)
from bae_lens.scoring.recoverability_result import RecoverabilitySettings
from tests.bad_inputs.damage import Damaged
from tests.bad_inputs.readers import Reader, of_file
from tests.bad_inputs.runs import saved_sae
from tests.bad_inputs.trial import Trial, command
from tests.helpers import make_model, make_text, runner_cfg, save_bert

_D: dict[str, Any] = {"d_in": 16, "d_sae": 40}
CONFIGS: dict[type, dict[str, Any]] = {
    TrainingBAEConfig: _D,
    BAEConfig: _D,
    TrainingCLVQVAEConfig: {**_D, "d_out": 16},
    CLVQVAEConfig: {**_D, "d_out": 16},
    TrainingTopKTranscoderConfig: {**_D, "d_out": 16, "k": 4},
    TopKTranscoderConfig: {**_D, "d_out": 16, "k": 4},
    **{
        settings: {}
        for settings in (
            ExampleSettings,
            IntruderSettings,
            ComSemSettings,
            RankingSettings,
            RecoverabilitySettings,
            QuizSettings,
            AblationSettings,
            SparseProbingSettings,
            FinetuningSettings,
            Limits,
        )
    },
    EndpointSettings: {"base_url": "http://localhost/v1", "model": "m"},
}
_VERY_MANY = "9" * 400
_INF = float("inf")
_NUMBERS: tuple[Any, ...] = ("x", "1e-3", [1], {}, -_INF, _INF, float("nan"), -(10**30), True, b"1")
_STRINGS: tuple[Any, ...] = ("no such choice", 3, ["a"], {}, b"a", 0.5)
_FLAGS: tuple[Any, ...] = ("yes", 2, [], {}, 0.5)


def _kinds(config: type) -> dict[str, str]:
    """Fields of a kind of plain value, by name."""
    hints = get_type_hints(config)
    found = {}
    for field in fields(config):  # pyright: ignore[reportArgumentType]
        text = str(hints[field.name])
        if hints[field.name] is bool:
            found[field.name] = "flag"
        elif hints[field.name] in (int, float) or text in (
            "int | None",
            "float | None",
            "typing.Optional[int]",
            "typing.Optional[float]",
        ):
            found[field.name] = "number"
        elif "Literal" in text:
            found[field.name] = "choice"
    return found


_BAD = {"number": _NUMBERS, "choice": _STRINGS, "flag": _FLAGS}


def _python(random: Random, folder: Path) -> Iterator[Trial]:
    known = [(c, name, kind) for c in CONFIGS for name, kind in _kinds(c).items()]
    while True:
        config, name, kind = random.choice(known)
        value = random.choice(_BAD[kind])
        call = partial(config, **{**CONFIGS[config], name: value})
        yield Trial(f"{config.__name__}({name}={value!r})", call, (name,), value=repr(value)[:40])


_RUNNER_NUMBERS = (
    *("training_tokens", "train_batch_size_tokens", "context_size", "store_batch_size_prompts"),
    *("n_batches_in_buffer", "lr", "feature_sampling_window", "dead_feature_window"),
    *("n_eval_batches", "n_batches_for_norm_estimate", "lr_warm_up_steps", "adam_beta1", "seed"),
)
_RUNNER_BAD: tuple[Any, ...] = ("x", [1], -5, float("nan"), _INF, None, {})


def _runner(random: Random, folder: Path) -> Iterator[Trial]:
    model, text = make_model(), make_text()
    while True:
        name, value = random.choice(_RUNNER_NUMBERS), random.choice(_RUNNER_BAD)

        def call(name: str = name, value: Any = value) -> None:
            # Set afterwards: what SAELens' own class makes of it when it is made is SAELens'.
            cfg = runner_cfg(folder / "run")
            setattr(cfg, name, value)
            TrainingRunner(cfg, text, model)

        # A seed may be negative.
        is_told = value is not None and (name, value) != ("seed", -5)
        yield Trial(
            f"{name}={value!r}",
            call,
            (name, name.replace("train_batch_size_tokens", "batch")),
            is_told,
        )


def _run_config(folder: Path) -> dict[str, Any]:
    config = runner_cfg(folder / "run").to_dict()
    return {k: v for k, v in config.items() if k not in ("seqpos_slice",)}


def _config_files(random: Random, folder: Path) -> Iterator[Trial]:
    good = _run_config(folder)
    names = [name for name, value in good.items() if type(value) in (int, float)]
    sae_names = list(_kinds(TrainingBAEConfig))

    def dumped(values: Any, is_json: bool) -> bytes:
        return (json.dumps(values) if is_json else yaml.safe_dump(values)).encode()

    def damaged(is_json: bool) -> Iterator[Damaged]:
        while True:
            whole = dumped(good, is_json)
            yield Damaged("empty", b"")
            yield Damaged("noise", b"\x00\xff" + random.randbytes(50))
            yield Damaged("latin-1", whole + 'x: "é"\n'.encode("latin-1"))
            yield Damaged("nested", b"[" * random.randrange(10_000, 200_000))
            yield Damaged("a list", dumped([1, 2], is_json))
            name = random.choice(names)
            value = random.choice(["x", [1], {"a": 1}])
            yield Damaged(f"{name}: {value}", dumped({**good, name: value}, is_json))
            yield Damaged("unknown field", dumped({**good, "no_such_field": 1}, is_json))
            field = random.choice(sae_names)
            bad = {**good, "sae": {**good["sae"], field: random.choice([["x"], {"a": 1}])}}
            yield Damaged(f"sae.{field}", dumped(bad, is_json))
            twice = f', "{name}": 3}}' if is_json else f"{name}: 3\n"
            yield Damaged("twice", (whole[:-1] if is_json else whole) + twice.encode())
            yield Damaged(
                "architecture", dumped({**good, "sae": {"architecture": "evil"}}, is_json)
            )
            yield Damaged("sae: 3", dumped({**good, "sae": 3}, is_json))
            if not is_json:
                yield Damaged(
                    "a Python object", whole + b"x: !!python/object/apply:os.system [id]\n"
                )
                bomb = b"a: &a [x]\n" + b"".join(
                    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9))
                    for c in range(ord("b"), ord("k"))
                )
                yield Damaged("aliases without end", bomb)
                yield Damaged("a tab", b"model_name:\tx\n\tlr: 1\n" + whole)

    readers = [
        of_file(name, load_config, damaged(is_json), folder)
        for name, is_json in (("run.yaml", False), ("run.json", True))
    ]
    while True:
        for reader in readers:
            yield next(reader)


def _train_options(random: Random, folder: Path) -> Iterator[Trial]:
    path = folder / "run.yaml"
    names = {"model_name": demo.MODEL_NAME, "dataset_path": demo.DATASET_NAME}
    path.write_text(yaml.safe_dump({**_run_config(folder), **names}))
    options = {
        **dict.fromkeys(
            ("training_tokens", "train_batch_size_tokens", "context_size", "sae.d_sae"),
            ("x", "-5", "0", "1.5", "nan", "[1]", "9" * 400),
        ),
        **dict.fromkeys(("lr", "sae.temperature"), ("x", "nan", "inf", "-1", "[1]")),
        "feature_sampling_window": ("0", "x", "-1"),
        "device": ("gpu", "cuda:x", "3"),
        "hook_name": ("no.such.hook", "blocks.9.hook_resid_post"),
        "output_path": (str(path), "/proc/x", "n" * 300),
        "checkpoint_path": (str(path), "/proc/x"),
        "resume_from_checkpoint": (str(folder / "nowhere"), str(path)),
        "from_pretrained_path": (str(folder / "nowhere"), str(path)),
        "replay_tokens": ("x", "-1", "1.5"),
        "seed": ("x", "1.5", "9" * 400),
        "no_such_field": ("1",),
        "sae.no_such_field": ("1",),
        "sae.surrogate": ("nothing", "3"),
        "sae.target_entropy": ("x", "-1", "nan", "inf"),
    }
    known = [(name, value) for name, values in options.items() for value in values]
    while True:
        name, value = random.choice(known)
        short = name.rpartition(".")[2]
        names = (name, short, *(word for word in ("batch", "hook") if word in name))
        yield Trial(
            f"--{name} {value[:30]}", command("train", str(path), f"--{name}", value), names
        )


# What the hub, or whoever loads from it, could do nothing with.
_OF_UPLOAD = {
    "--repo_id": ("saes", "a/b/c", "a b/c", "ann/..", ""),
    "--sae_ids": ("../x", "README.md", "/x", "a b", ""),
    "--revision": ("a b", "..", ""),
    "--license": ("mit\nx", "a b", ""),
    "--model": ("/models/x", "./x", ""),
    "--dry_run": ("/proc/x", str(Path(__file__).parent), __file__, ""),
}


def _options(random: Random, folder: Path) -> Iterator[Trial]:
    sae = str(saved_sae(folder / "sae"))
    data = folder / "data.jsonl"
    rows = [{"text": f"word{i} word{i + 1} word3", "label": i % 2} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Of the same kind and not the same, as a quiz wants them.
    reference = folder / "reference.jsonl"
    rows = [{"text": f"word{i} word{i + 2} word5", "label": i % 2} for i in range(30)]
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = save_bert(folder / "encoder", BertModel)
    config = folder / "run.yaml"
    names = {"model_name": demo.MODEL_NAME, "dataset_path": demo.DATASET_NAME}
    config.write_text(yaml.safe_dump({**_run_config(folder), **names}))
    given = {
        "eval": (sae,),
        # The stand-in for a language model is no encoder that could judge.
        "report": (sae, "--judge", "none"),
        "serve": (sae,),
        "ablate": (sae, "--data", str(data), "--context_size", "16"),
        "probe": (sae, "--data", str(data), "--context_size", "16"),
        "check": (str(encoder),),
        "upload": (sae, "--repo_id", "ann/saes", "--dry_run", str(folder / "to_send")),
        "export": ("delphi", sae, "--output", str(folder / "delphi")),
        "finetune": (str(data), "--model", str(encoder), "--output", str(folder / "classifier")),
        "suggest": (str(config), "--n_judged", "0", "--tokens", "600", "--steps", "2"),
        "quiz": (sae, "--data", str(data), "--reference", str(reference), "--context_size", "16"),
    }
    known: list[tuple[str, str, tuple[str, ...]]] = []
    for name in given:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"bae_lens.cli.{name}").add_arguments(parser)
        for action in parser._actions:
            flag = next((f for f in action.option_strings if f.startswith("--")), None)
            if flag is None:
                continue
            if flag in _OF_UPLOAD and name == "upload":
                known.append((name, flag, _OF_UPLOAD[flag]))
            elif action.type is int:
                known.append((name, flag, ("x", "-1", "1.5", "", _VERY_MANY)))
            elif action.type is float:
                known.append((name, flag, ("x", "nan", "-1", "")))
            elif action.choices:
                known.append((name, flag, ("nonsense", "")))
            elif flag == "--device":
                known.append((name, flag, ("gpu", "")))
            elif flag in (
                "--data",
                "--test_data",
                "--reference",
                "--reference_data",
                "--evidence",
            ):
                known.append((name, flag, (str(folder / "nowhere.jsonl"),)))
            elif flag == "--output":
                known.append((name, flag, (sae, "/proc/x", str(data / "x"))))
            elif flag == "--budgets":
                known.append((name, flag, ("x", "4", "4,-1", "4,nan", "")))
            elif flag == "--plot":
                known.append((name, flag, (sae, "x.txt", "/proc/x.png", str(data / "x.svg"))))
    # Of what it would take all, it would then serve, without end.
    known = [
        (name, flag, tuple(v for v in values if name != "serve" or v != _VERY_MANY))
        for name, flag, values in known
    ]
    known.append(("serve", "--port", (_VERY_MANY, "65536")))
    while True:
        name, flag, values = random.choice(known)
        value = random.choice(values)
        argv = list(given[name])
        if flag in argv:
            argv[argv.index(flag) + 1] = value
        else:
            argv += [flag, value]
        yield Trial(
            f"{name} {flag} {value[:30]}",
            command(name, *argv),
            (flag, flag[2:], value[:30] or flag),
            is_told=value != _VERY_MANY,  # of what there is, all
        )


VALUES = (
    Reader(
        "configs and settings", "fields × bad values", "type, range and finite numbers", _python
    ),
    Reader("TrainingRunner(cfg)", "fields × bad values", "numbers SAELens does not check", _runner),
    Reader("load_config", "damaged YAML and JSON", "fields and values of a run", _config_files),
    Reader(
        "bae-lens train --FIELD", "options × bad values", "values of the fields", _train_options
    ),
    Reader(
        "eval, report, serve, ablate, probe, check, upload, export, finetune, suggest, quiz",
        "options × bad values",
        "values of the options",
        _options,
    ),
)
