"""``bae-lens serve PATH`` on a tiny model: the report, and texts that are asked for."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sae_lens import SAE

from bae_lens.cli import main
from bae_lens.examples import LatentRecords
from bae_lens.report.live_server import LiveServer
from tests.cli.helpers import resolve_to_tiny
from tests.cli.test_report import save
from tests.report.helpers import make_intruder
from tests.report.serving import Reply, ask, request

SMALL = ("--n_tokens", "300", "--n_sentences", "2", "--n_effects", "2")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


def serve(
    monkeypatch: pytest.MonkeyPatch, *argv: str, text: str = "word3 word4"
) -> tuple[str, Reply]:
    """The page and the answer of a command that is then ended as by Ctrl-C."""
    found: list[Any] = []
    serve_forever = LiveServer.serve_forever

    def ended(self: LiveServer, poll_interval: float = 0.5) -> None:
        thread = threading.Thread(target=serve_forever, args=(self, 0.01), daemon=True)
        thread.start()
        found.append(request(self, f"/{self.token}/").body.decode())
        found.append(ask(self, text))
        self.shutdown()
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveServer, "serve_forever", ended)
    assert main(["serve", *argv]) == 0
    page, answer = found
    return page, answer


def test_the_report_is_served_with_a_field_for_text(folder, monkeypatch, capsys):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    page, answer = serve(monkeypatch, str(folder), *SMALL, "--open", "--save_examples")
    out, err = capsys.readouterr()
    assert "error" not in err
    address = out.splitlines()[-1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/#live", address)
    assert opened == [address]
    assert '"live":{"nTokens":16}' in page
    assert "connect-src 'self';" in page
    assert answer.status == 200
    assert [s.strip() for s in answer.said["tokens"]] == ["<bos>", "word3", "word4"]
    assert any(answer.said["codes"])
    assert not (folder / "report.html").exists()

    # The second time, nothing is collected; scores that lie there are shown.
    records = LatentRecords.load(folder / "examples.json")
    make_intruder(records, 5, weights_sha256=records.weights_sha256).save(folder / "intruder.json")
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        resolve_to_tiny(patch)
        patch.setattr("bae_lens.examples.collect_examples", lambda *_, **__: 1 / 0)
        again, answer_again = serve(patch, str(folder), *SMALL)
    assert "intruder score" in again
    assert "intruder score" not in page.partition('id="data">')[2].partition("</script>")[0]
    assert answer_again.said == answer.said


def metrics_of(page: str) -> dict[str, Any]:
    data = page.partition('id="data">')[2].partition("</script>")[0]
    [own] = json.loads(data)["dictionaries"]
    return {name: value for name, value, *_ in own["metrics"]}


def test_metrics_are_shown_and_not_measured(folder, monkeypatch, capsys):
    serve(monkeypatch, str(folder), *SMALL, "--save_examples")
    own = {"weights_sha256": LatentRecords.load(folder / "examples.json").weights_sha256}
    monkeypatch.setattr("bae_lens.evals.run_evals", lambda *_, **__: 1 / 0)
    page, _ = serve(monkeypatch, str(folder), *SMALL)
    assert metrics_of(page) == {}

    for about, metrics, said in (
        (own, {"code/l0": 7.5}, ""),
        (
            {"weights_sha256": "0"},
            {},
            "is of other weights: left out; bae-lens eval measures these",
        ),
    ):
        content = {"code": {"l0": 7.5}, "sae": about}
        (folder / "eval_metrics.json").write_text(json.dumps(content))
        capsys.readouterr()
        page, _ = serve(monkeypatch, str(folder), *SMALL)
        err = capsys.readouterr().err
        assert (metrics_of(page), said in err, "anew" in err) == (metrics, True, False)


def test_metrics_are_measured_where_that_is_asked_for(folder, monkeypatch):
    page, _ = serve(monkeypatch, str(folder), *SMALL, "--n_code_tokens", "200")
    assert metrics_of(page)["code/n_tokens"] == 200


def test_bad_input(folder, tmp_path, capsys):
    def refused(*argv: str) -> str:
        assert main(["serve", *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, "Traceback" in err) == ("", False)
        return err.partition("bae-lens: error: ")[2]

    assert str(tmp_path / "nowhere") in refused(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "cfg.json" in refused(str(tmp_path / "empty"))
    assert "--port must be" in refused(str(folder), "--port", "70000")
    assert "--port must be" in refused(str(folder), "--port", "-1")
    with LiveServer() as other:
        port = str(other.server_port)
        said = refused(str(folder), *SMALL, "--port", port)
    assert said.startswith(f"--port {port} of 127.0.0.1 cannot be listened on")
    assert "nowhere.json" in refused(str(folder), "--examples", str(tmp_path / "nowhere.json"))
    assert "--n_sentences" in refused(str(folder), "--n_sentences", "-1")


def test_examples_of_other_weights_are_refused(folder, tmp_path, monkeypatch, capsys):
    serve(monkeypatch, str(folder), *SMALL, "--save_examples")
    sae = SAE.load_from_disk(folder)
    sae.W_dec.data.add_(1.0)
    sae.save_model(folder)
    capsys.readouterr()
    assert main(["serve", str(folder)]) == 2
    assert "other weights" in capsys.readouterr().err


def test_ctrl_c_before_it_serves_is_an_interruption(folder, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bae_lens.examples.collect_examples", interrupted)
    before = time.monotonic()
    assert main(["serve", str(folder)]) == 130
    assert time.monotonic() - before < 60
