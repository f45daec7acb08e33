"""Saved SAEs go to a stand-in of the hub, and come back by ``SAE.from_pretrained``."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from sae_lens import SAE, StandardSAE, StandardSAEConfig, upload_saes_to_huggingface
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from bae_lens.cli import main
from bae_lens.fingerprint import deciding_fields, weights_sha256
from bae_lens.hub import upload_saes
from bae_lens.hub.private import is_local_path, without_secrets
from tests.bad_inputs.runs import saved_sae
from tests.conformance.cases import ARCHITECTURES, in_a_model
from tests.helpers import D_IN, D_SAE, HOOK, HOOK_OUT, make_bae, make_clvq
from tests.hub.local_hub import TOKEN, LocalHub, use_local_hub

REPO = "ann/saes"
METRICS = {
    "code": {
        **{"n_tokens": 65536, "description_length": 281.4, "support_entropy": 281.4},
        **{"explained_variance": 0.8137, "l0": 47.25, "dense_share_10": 0.013, "dead_share": 0.002},
    },
    "model_performance_preservation": {"ce_loss_with_sae": 3.25, "ce_loss_without_sae": 3.0},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    return use_local_hub(monkeypatch, tmp_path / "hub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_sae(tmp_path / "block0")


def write_metrics(folder: Path, sae: SAE[Any], **about: Any) -> None:
    own = {"weights_sha256": weights_sha256(sae), "text": "texts|`x`\n"}
    own["model_name"] = sae.cfg.metadata.model_name
    (folder / "eval_metrics.json").write_text(json.dumps({**METRICS, "sae": {**own, **about}}))


def change(file: Path, **values: Any) -> None:
    """Of a JSON file; ``metadata`` is merged."""
    now = json.loads(file.read_text())
    for name, value in values.items():
        now[name] = {**now[name], **value} if name == "metadata" else value
    file.write_text(json.dumps(now))


# There and back


def test_every_architecture_comes_back_by_from_pretrained(hub: LocalHub, tmp_path: Path) -> None:
    folders, saes = {}, {}
    for i, architecture in enumerate(ARCHITECTURES.values()):
        saes[f"sae-{i}"] = in_a_model(architecture), architecture.inputs()
        folders[f"sae-{i}"] = tmp_path / f"{i}"
        saes[f"sae-{i}"][0].save_model(folders[f"sae-{i}"])

    uploaded = upload_saes(folders, REPO)

    assert uploaded.url == f"https://hub/{REPO}/1"
    assert len(hub.commits) == 1
    for sae_id, (sae, inputs) in saes.items():
        loaded = SAE.from_pretrained(REPO, sae_id)
        assert type(loaded) is type(sae)
        assert weights_sha256(loaded) == weights_sha256(sae)
        assert torch.equal(loaded(inputs), sae(inputs))
        assert loaded.cfg.metadata.hook_name == HOOK
        assert loaded.cfg.metadata.hook_name_out == sae.cfg.metadata.hook_name_out
        # By its own class too.
        assert type(type(sae).from_pretrained(REPO, sae_id)) is type(sae)


def test_the_same_files_as_of_saelens_own_upload(hub: LocalHub, folder: Path) -> None:
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    (folder / "runner_cfg.json").write_text('{"seed": 3}')
    (folder / "metrics.jsonl").write_text("{}")

    upload_saes_to_huggingface({"x": folder}, "ann/theirs", show_progress=False)
    upload_saes({"x": folder}, REPO)

    theirs, ours = hub.branch("ann/theirs"), hub.branch(REPO)
    assert sorted(hub.list_repo_files(REPO)) == sorted(hub.list_repo_files("ann/theirs"))
    for name in hub.list_repo_files(REPO):
        if name != "README.md":
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    _, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(REPO, "x")
    assert cfg["d_sae"] == D_SAE
    assert sparsity is not None
    assert torch.equal(sparsity, torch.zeros(D_SAE))


def test_a_dry_run_writes_what_is_sent_and_asks_no_hub(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    dry = upload_saes({"x": folder}, REPO, dry_run=tmp_path / "dry")
    assert dry.url is None
    assert hub.private == {}

    sent = upload_saes({"x": folder}, REPO)

    assert sent.files == dry.files == ("README.md", "x/sae_weights.safetensors", "x/cfg.json")
    for name in sent.files:
        assert (tmp_path / "dry" / name).read_bytes() == (hub.branch(REPO) / name).read_bytes()
    with pytest.raises(ValueError, match=r"dry_run .*dry is there and not empty"):
        upload_saes({"x": folder}, REPO, dry_run=tmp_path / "dry")


def test_what_is_there_already(
    hub: LocalHub, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    upload_saes({"x": folder}, REPO)
    readme = hub.branch(REPO) / "README.md"
    readme.write_text("Ann's own.")
    caplog.clear()

    upload_saes({"x": saved_sae(tmp_path / "other", make_clvq(d_out=D_IN))}, REPO)

    assert readme.read_text() == "Ann's own."
    # Of the SAE that was there before.
    assert hub.commits[-1] == (
        "Upload x",
        ["+x/sae_weights.safetensors", "+x/cfg.json", "-x/sparsity.safetensors"],
    )
    assert type(SAE.from_pretrained(REPO, "x")).__name__ == "CLVQVAE"
    assert "has a README.md, which stays as it is" in caplog.text
    assert f"{REPO} has x already: it is replaced" in caplog.text
    upload_saes({"x": folder}, REPO, overwrite_readme=True)
    assert readme.read_text().startswith("---\n")


def test_a_branch_is_made_and_the_readme_says_how_to_load_from_it(
    hub: LocalHub, folder: Path
) -> None:
    upload_saes({"x": folder}, REPO, revision="v2", private=True)

    assert hub.private == {REPO: True}
    assert hub.list_repo_files(REPO) == [".gitattributes"]
    text = (hub.branch(REPO, "v2") / "README.md").read_text()
    assert f'snapshot_download("{REPO}", revision="v2", allow_patterns="x/*")' in text
    assert 'SAE.load_from_disk(f"{folder}/x")' in text
    upload_saes({"x": folder}, REPO, revision="v2")


# The card


def test_the_card_says_what_it_is_and_how_to_load_it(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    write_metrics(folder, SAE.load_from_disk(folder))
    across = saved_sae(tmp_path / "across", make_clvq(d_out=D_IN))
    change(across / "cfg.json", metadata={"hook_name_out": HOOK_OUT, "model_name": "evil|`\n# x"})

    upload_saes({"block0": folder, "across": across}, REPO, license="mit")

    text = (hub.branch(REPO) / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "saelens",
        "license": "mit",
        "tags": ["saelens", "bae-lens"],
    }
    assert (
        "| `block0` | Binary Autoencoder (arXiv 2509.20997), one bit a latent | `bae-lens/tiny` | "
        f"`{HOOK}` | {D_IN} | {D_SAE} |\n" in body
    )
    assert f"| `evil\\|' # x` | `{HOOK}` → `{HOOK_OUT}` |" in body
    assert (
        "| `block0` | 281 | 0.814 | 47.2 | 1.3 % | 0.2 % | 3.250 | 3.000 | 65,536 | `texts\\|'x'` |"
        in body
    )
    assert "| `across` | –" not in body  # It was not measured.
    assert (
        f'import bae_lens  # registers the architecture\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("{REPO}", "block0")'
        in body
    )
    assert "| `block0` | yes | yes | 16 | `bae-lens/tiny-text` |" in body
    # What it says to run, runs.
    [code] = [part.split("```")[0] for part in body.split("```python\n")[1:]]
    exec(code, loaded := {})
    assert type(loaded["sae"]).__name__ == "BAE"


def test_the_card_of_saelens_own_architecture_asks_for_no_package(
    hub: LocalHub, tmp_path: Path
) -> None:
    cfg = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=SAEMetadata(hook_name=HOOK))
    StandardSAE(cfg).save_model(tmp_path / "own")

    upload_saes({"own": tmp_path / "own"}, REPO)

    text = (hub.branch(REPO) / "README.md").read_text()
    assert "bae" not in text
    assert "license" not in text
    assert f"| `own` | `standard` | – | `{HOOK}` |" in text
    assert type(SAE.from_pretrained(REPO, "own")) is StandardSAE


def test_metrics_of_other_weights_are_left_out(
    hub: LocalHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics(folder, SAE.load_from_disk(folder), weights_sha256="0" * 64)

    assert "x/eval_metrics.json" not in upload_saes({"x": folder}, REPO).files

    assert "is of other weights" in caplog.text
    assert "281" not in (hub.branch(REPO) / "README.md").read_text()


# What must not leave this machine


def test_paths_of_this_machine_are_left_out_with_a_message(
    hub: LocalHub, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / "cfg.json", metadata={"dataset_path": str(tmp_path / "mine.jsonl")})
    run = {
        "output_path": "/home/ann/out",
        "argv": ["train", "--out=/home/ann/out", "output/x"],
        "logger": {"run_name": f"in {Path.home()}", "nested": [{"/home/ann/x": 1}]},
        "lr": 3e-4,
    }
    (folder / "runner_cfg.json").write_text(json.dumps(run))
    write_metrics(folder, SAE.load_from_disk(folder), text="C:\\Users\\ann\\texts.txt")

    upload_saes({"x": folder}, REPO)

    sent = hub.branch(REPO) / "x"
    assert json.loads((sent / "runner_cfg.json").read_text()) == {
        "output_path": None,
        "argv": ["train", None, "output/x"],
        "logger": {"run_name": None, "nested": [{}]},
        "lr": 3e-4,
    }
    assert SAE.from_pretrained(REPO, "x").cfg.metadata.dataset_path is None
    everything = "".join(
        file.read_text() for file in hub.branch(REPO).rglob("*") if file.suffix in (".json", ".md")
    )
    assert "ann\\" not in everything
    assert "/home" not in everything
    assert str(tmp_path) not in everything
    for name in ("metadata.dataset_path", "output_path", "argv[1]", "logger.run_name", "sae.text"):
        assert f": {name} is a path of this machine, and is left out." in caplog.text
    # The folder itself stays as it is.
    assert json.loads((folder / "runner_cfg.json").read_text()) == run


def test_a_language_model_in_a_folder_needs_a_name(
    hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classifier").mkdir()
    for name in (str(tmp_path / "classifier"), "classifier"):
        change(folder / "cfg.json", metadata={"model_name": name})
        with pytest.raises(ValueError, match=r"metadata\.model_name is a folder of this machine"):
            upload_saes({"x": folder}, REPO)
    assert hub.private == {}

    upload_saes({"x": folder}, REPO, model_name="ann/classifier")

    assert SAE.from_pretrained(REPO, "x").cfg.metadata.model_name == "ann/classifier"
    with pytest.raises(ValueError, match="got the path"):
        upload_saes({"x": folder}, REPO, model_name="./classifier")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wandb_api_key", "x"),
        ("token", "anything"),
        ("note", TOKEN),
        ("note", "see https://ann:pass@host.org/x"),
        ("note", "ghp_" + "a" * 30),
        ("hf_" + "k" * 30, 1),
        ("openai_token", "a1b2c3d4e5f6g7h8"),
        ("writeToken", "a1b2c3d4e5f6g7h8"),
        ("db-pwd", "y8"),
        ("password", 12345678),
        ("authorization", "Basic YW5uOnBhc3M="),
        ("command", "train --hf_token abcdefghijklmnop12345"),
        ("command", "env WANDB_API_KEY=0123456789abcdef01 train"),
        ("command", "env DB_PASSWORD=hunter train"),
        ("text", "https://b.host.org/x.jsonl?X-Amz-Signature=abcdef0123456789"),
        ("text", "https://abcdefghijklmnopq@host.org/x.git"),
        ("note", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.abcdef"),
        ("note", "gsk_abcdefghijklmnopqrst"),
        ("passphrase", "correct horse"),
        ("sshKey", "AAAAB3"),
        ("clientSecret", "y8"),
        ("credentials.user", "ann8"),
        ("secrets.db[1]", "y8"),
    ],
)
def test_secrets_are_refused_and_not_repeated(
    hub: LocalHub, folder: Path, field: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    inner: Any = value
    for name in reversed(field.split(".")):
        name, is_list = name.removesuffix("[1]"), name.endswith("[1]")
        inner = {name: [None, inner] if is_list else inner}
    (folder / "runner_cfg.json").write_text(json.dumps({"logger": inner}))

    assert main(["upload", str(folder), "--repo_id", REPO]) == 2

    err = capsys.readouterr().err
    assert "holds what looks like a key, a token or a password, so nothing is sent" in err
    assert f"runner_cfg.json: logger.{'…' if field.startswith('hf_') else field} holds" in err
    assert str(value) not in err or value in (1, "x")
    assert hub.private == {}


def test_fields_that_only_sound_like_secrets_pass(hub: LocalHub, folder: Path) -> None:
    run = {"sequence_separator_token": "bos", "training_tokens": 10, "token": True, "hf_token": ""}
    (folder / "runner_cfg.json").write_text(json.dumps(run))
    upload_saes({"x": folder}, REPO)
    assert (hub.branch(REPO) / "x" / "runner_cfg.json").read_text() == json.dumps(run)


def test_notes_beside_the_weights_are_looked_at(hub: LocalHub, folder: Path) -> None:
    weights = folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors, weights, {"where": "/home/ann/x"})
    with pytest.raises(ValueError, match="where among its notes is a path of this machine"):
        upload_saes({"x": folder}, REPO)
    save_file(tensors, weights, {"note": TOKEN})
    with pytest.raises(ValueError, match=r"note holds what looks like a key"):
        upload_saes({"x": folder}, REPO)


# What cannot be sent


def test_what_is_no_whole_sae(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(folder, tmp_path / "checkpoint"))
    (checkpoint / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    unscaled = Path(shutil.copytree(folder, tmp_path / "unscaled"))
    change(unscaled / "cfg.json", normalize_activations="expected_average_only_in")
    nan = Path(shutil.copytree(folder, tmp_path / "nan"))
    tensors = load_file(nan / "sae_weights.safetensors")
    tensors["b_enc"][0] = torch.nan
    save_file(tensors, nan / "sae_weights.safetensors")
    sparsity = Path(shutil.copytree(folder, tmp_path / "sparsity"))
    save_file({"sparsity": torch.zeros(3)}, sparsity / "sparsity.safetensors")
    no_sparsity = Path(shutil.copytree(folder, tmp_path / "no_sparsity"))
    (no_sparsity / "sparsity.safetensors").write_bytes(b"x")

    for path, message in (
        (tmp_path / "nowhere", "is not the folder of a saved SAE"),
        (checkpoint, "is a checkpoint from the middle of a run"),
        (unscaled, "the scale of its inputs is not in its weights"),
        (nan, "b_enc"),
        (sparsity, "is of another SAE: its tensor has the shape"),
        (no_sparsity, "is no file of how often latents fire"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            # Beside one that could be sent.
            upload_saes({"good": folder, "x": path}, REPO)
    assert hub.private == {}


def test_what_would_not_come_back_is_not_sent(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_bae(d_sae=D_SAE + 1)
    monkeypatch.setattr(SAE, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(ValueError, match="would not come back as it is"):
        upload_saes({"x": folder}, REPO)
    assert hub.private == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "no-owner"}, "repo_id must be OWNER/NAME"),
        ({"repo_id": "a/b/c"}, "repo_id must be OWNER/NAME"),
        ({"repo_id": "a/../b"}, "repo_id must be OWNER/NAME"),
        ({"repo_id": ""}, "repo_id must be a string that is not empty"),
        ({"saes": {}}, "saes must name at least one folder"),
        ({"saes": {"../x": "x"}}, "An SAE's id must be a path in the repository"),
        ({"saes": {"README.md": "x"}}, "An SAE's id names a folder, and readme.md is a file"),
        ({"saes": {"a": "x", "a/cfg.json": "x"}}, "An SAE's id names a folder, and cfg.json is a"),
        ({"saes": {".git": "x"}}, "An SAE's id must be a path in the repository"),
        ({"revision": "a b"}, "revision must be of letters"),
        ({"license": "mit\ntags: x"}, "license must be of letters"),
        ({"private": "yes"}, "private must be True or False"),
        ({"model_name": "/models/x"}, "model_name must be a name by which others find"),
    ],
)
def test_names_that_cannot_be(
    hub: LocalHub, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        upload_saes(**{"saes": {"x": folder}, "repo_id": REPO, **options})


def test_tokens_of_a_tokenizer_and_counts_are_no_secrets(hub: LocalHub, folder: Path) -> None:
    run = {
        "sequence_separator_token": "bos",
        "pad_token": "<|reserved_special_token_0|>",
        "training_tokens": 300,
        "secrets": 2,
        "forward_pass": "twice",
        "pass": "2 of 3",
        "mask_token": "begin_of_sentence",
        "note": "a Bearer certificates the special token 0x123456789ab",
        "command": "train --training_tokens 1000000000000 --context_size=128",
        "link": "see https://host.org/a/b and text: /b/ or ~5/10 //host/",
        "top_token": " antidisestablishmentarianism",
        "n_batches_in_buffer_key": "x",
    }
    (folder / "runner_cfg.json").write_text(json.dumps(run))
    upload_saes({"x": folder}, REPO)
    assert json.loads((hub.branch(REPO) / "x" / "runner_cfg.json").read_text()) == run


def test_names_that_hold_the_working_directory_are_no_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/lab"))
    for name in ("ann/lab", "https://host.org/lab/x", "my.lab/lab-2", "net/lab"):
        assert not is_local_path(name)
    for path in ("in /lab", "/lab", "(/lab)", "x:/lab/saes"):
        assert is_local_path(path)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "--out /data",
            "-o /data",
            "--cache=/c",
            "gcc -I/usr/include",
            "see `/mnt/a`",
            "a|/usr/lib",
        ),
        *("x >/tmp/x/y", "“/home/ann/x”", "//share/x", "--x=//share/x", "~ann/y", "--x=file:///a"),
    ],
)
def test_paths_in_what_is_no_path_as_a_whole(value: str) -> None:
    assert is_local_path(value)


@pytest.mark.parametrize(
    "piece",
    ["-", "a-", "token=", "eyJ-", "Bearer x ", "--token ", "://a", "/a", "~a", "=/a", " --a"],
)
def test_a_long_value_is_looked_through_at_once(piece: str) -> None:
    """What matches in many places at first, and in none in the end."""
    text = piece * (200_000 // len(piece))
    begun = time.process_time()
    without_secrets(text)
    is_local_path(text)
    assert time.process_time() - begun < 5


def test_metrics_of_another_model_or_config_are_left_out(
    hub: LocalHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The README would say of one what was measured of the other."""
    sae = SAE.load_from_disk(folder)
    own = deciding_fields(sae)

    def is_sent(model_name: str | None = None, **about: Any) -> bool:
        write_metrics(folder, sae, **about)
        upload_saes({"x": folder}, REPO, model_name=model_name)
        return (hub.branch(REPO) / "x" / "eval_metrics.json").is_file()

    assert is_sent(config=own)
    assert is_sent(config={"of a later version": 1, **own})
    assert is_sent("ann/public")
    sent = json.loads((hub.branch(REPO) / "x" / "eval_metrics.json").read_text())
    assert sent["sae"]["model_name"] == "ann/public"
    assert not is_sent(config={**own, "hook_name": "blocks.1.hook_resid_post"})
    assert "is of another hook_name than cfg.json has, and is left out" in caplog.text


def test_metrics_of_another_language_model_are_not_renamed(
    hub: LocalHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics(folder, SAE.load_from_disk(folder), model_name="other/model")
    upload_saes({"x": folder}, REPO, model_name="ann/public")
    assert not (hub.branch(REPO) / "x" / "eval_metrics.json").exists()
    assert "is of another language model than cfg.json has, and is left out" in caplog.text
    assert "CE loss" not in (hub.branch(REPO) / "README.md").read_text()


def test_a_public_repository_gets_nothing_private(hub: LocalHub, folder: Path) -> None:
    hub.create_repo(REPO)
    with pytest.raises(ValueError, match="is there and public"):
        upload_saes({"x": folder}, REPO, private=True)
    assert hub.commits == []


def test_what_the_hub_says_is_told_without_the_token(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fails = ConnectionError(f"reset by peer, Authorization: Bearer {TOKEN}")
    with pytest.raises(
        ValueError, match=r"^Nothing was sent.*reset by peer.*An empty repo.*left there\.$"
    ) as told:
        upload_saes({"x": folder}, REPO)
    assert TOKEN not in str(told.value)
    assert hub.list_repo_files(REPO) == [".gitattributes"]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("bae_lens.hub.upload.get_token", lambda: None)
    with pytest.raises(ValueError, match="There is no token for the hub: log in once"):
        upload_saes({"x": folder}, REPO)


class _BadRequest(HfHubHTTPError, ValueError):
    """As the client's BadRequestError is, without a response."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0])


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, _BadRequest])
def test_what_the_client_refuses_by_a_value_error_is_told_likewise(
    hub: LocalHub, folder: Path, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    """As of a README whose header it does not take: after the repository was made."""

    def fail(*_: Any, **__: Any) -> None:
        # A frame of the client's, as in life: what is raised here is none of ours.
        code = compile("raise error", "hf_api.py", "exec")
        exec(code, {"__name__": "huggingface_hub.hf_api", "error": kind(f"Invalid: {TOKEN}")})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_commit", staticmethod(fail))
        assert main(["upload", str(folder), "--repo_id", REPO, "--revision", "v2"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert f"Nothing was sent to {REPO}, as far as can be told: {kind.__name__}: Invalid: …." in err
    assert "An empty repository was made and is left there. The branch v2 was made and" in err


def test_why_a_file_could_not_be_sent_is_told_too(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client says only which file it was, and raises that from what happened."""

    def fail(*_: Any, **__: Any) -> None:
        code = "try:\n raise OSError(f'gone with {token}')\nexcept OSError as e:\n raise RuntimeError('x.bin') from e"
        exec(compile(code, "hf_api.py", "exec"), {"__name__": "huggingface_hub", "token": TOKEN})

    monkeypatch.setattr(HfApi, "create_commit", staticmethod(fail))
    with pytest.raises(ValueError, match=r"RuntimeError: x\.bin; from OSError: gone with …\. An"):
        upload_saes({"x": folder}, REPO)


def test_a_file_that_is_written_while_it_is_checked_is_not_sent(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The README would be of the weights before."""

    def train_again(*_: Any, **__: Any) -> list[str]:
        make_bae(seed=1).save_model(folder)
        return []

    monkeypatch.setattr(HfApi, "list_repo_files", staticmethod(train_again))
    with pytest.raises(ValueError, match=r"written while it was checked.*An empty repository was"):
        upload_saes({"x": folder}, REPO)
    assert hub.commits == []


def test_an_upload_that_is_interrupted_says_what_is_left(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", staticmethod(stop))
    with pytest.raises(KeyboardInterrupt):
        upload_saes({"x": folder}, REPO)
    assert f"{REPO}: An empty repository was made and is left there." in caplog.text


def test_a_branch_that_cannot_be_made_leaves_a_repository_that_is_told(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(HfApi, "create_branch", staticmethod(fail))
    with pytest.raises(ValueError, match=r"gone\. An empty repository was made and is left there"):
        upload_saes({"x": folder}, REPO, revision="v2")


def test_whether_others_see_a_repository_is_its_owners_to_say(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(repo_id: str, private: bool | None = None) -> None:
        asked.append(private)
        hub.create_repo(repo_id, private)

    monkeypatch.setattr(HfApi, "create_repo", staticmethod(create))
    upload_saes({"x": folder}, REPO)
    upload_saes({"x": folder}, f"{REPO}-2", private=True)
    assert asked == [None, True]


# The command


def test_the_command(
    hub: LocalHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved_sae(tmp_path / "more" / "block0")

    assert main(["upload", str(folder), "--repo_id", REPO, "--dry_run", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert out == (
        "README.md\nblock0/sae_weights.safetensors\nblock0/cfg.json\n\n"
        f"Written to {tmp_path / 'd'}; nothing was sent\n"
    )
    command = ["upload", str(folder), str(other), "--repo_id", REPO]
    assert main(command) == 2
    assert "Two PATHs are called 'block0': give each an id of its own" in capsys.readouterr().err
    assert main([*command, "--sae_ids", "a"]) == 2
    assert "got 1 ids for 2 PATHs" in capsys.readouterr().err
    assert hub.private == {}
    assert main([*command, "--sae_ids", "a/b", "c", "--private", "--license", "mit"]) == 0
    told = capsys.readouterr()
    assert told.out.endswith(f"\nSent to {REPO}: https://hub/{REPO}/1\n")
    assert TOKEN not in told.out + told.err
    assert hub.private == {REPO: True}
    assert type(SAE.from_pretrained(REPO, "a/b")).__name__ == "BAE"


def test_nothing_is_logged_of_the_token(
    hub: LocalHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        upload_saes({"x": folder}, REPO)
    assert TOKEN not in caplog.text
    assert not any(TOKEN.encode() in f.read_bytes() for f in hub.folder.rglob("*") if f.is_file())
