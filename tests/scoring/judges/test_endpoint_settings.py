"""Where an endpoint is, and what is sent there in clear."""

from __future__ import annotations

import pytest

from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.judges.endpoint import EndpointJudge, EndpointSettings


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("BAE_LENS_JUDGE_MODEL", "m")
    assert EndpointSettings.from_environment(n_tries=2) == EndpointSettings(
        "http://localhost:1/v1", "m", None, n_tries=2
    )
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("BAE_LENS_JUDGE_MODEL", "")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL and no BAE_LENS_JUDGE_MODEL"):
        EndpointJudge()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": "http://:hunter22@host/v1"},
        {"base_url": "http://host/v1?key=hunter22"},
        {"base_url": "http://host/v1#hunter22"},
        {"base_url": "http://host/v1;key=hunter22"},
        {"base_url": "sk-hunter22"},
        {"base_url": "user:hunter22@host/v1"},
        {"base_url": "http://"},
        {"base_url": "http:///v1"},
        {"base_url": "http://host:99999/v1"},
        {"base_url": "http://user:hunter22"},
        {"base_url": "eyJ.hunter22.x"},
        {"base_url": "http://[::1"},
        {"base_url": "http://höst/v1"},
        {"base_url": "http://host/ v1"},
        {"base_url": "http://host\\@other/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": None},
        {"model": ""},
        {"api_key": "hunter22\n"},
        {"api_key": b"hunter22"},
        {"model": 7},
        {"model": "\udcff"},
        {"model": "a\nb"},
        {"timeout": float("inf")},
        {"max_wait": float("nan")},
        {"n_tries": 1.5},
        {"n_parallel": True},
        {"allow_plain_http": "no"},
        {"body": {"x": {1, 2}}},
        {"body": {"x": float("nan")}},
        {"body": {"max_tokens": "many"}},
        {"body": []},
        {"n_tries": 0},
        {"n_parallel": 0},
        {"n_reminders": -1},
        {"timeout": 0.0},
        {"wait": -1.0},
        {"body": {"stream": True}},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as e:
        EndpointSettings(**{"base_url": "http://host/v1", "model": "m", **wrong})
    assert "hunter22" not in str(e.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_calls": -1},
        {"max_cost": 1.0},
        {"price_in": -1.0},
        {"max_calls": 1.5},
        {"max_tokens": float("nan")},
        {"price_out": "1"},
    ],
)
def test_wrong_limits(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v1",
        "HTTP://10.0.0.1:80/v1",
        "http://127.0.0.1.evil.com/v1",
        "http://[2001:db8::1]/v1",
        "http://localhost.evil.com",
    ],
)
def test_a_key_goes_in_clear_only_where_that_was_said(url):
    with pytest.raises(ValueError, match="allow_plain_http") as e:
        EndpointSettings(url, "m", "sk-hunter22")
    assert "hunter22" not in str(e.value)
    EndpointSettings(url, "m", "sk-hunter22", allow_plain_http=True)
    EndpointSettings(url, "m")
    EndpointSettings(url.lower().replace("http:", "https:"), "m", "sk-hunter22")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "127.0.0.1",
        "127.8.9.1:1",
        "[::1]:80",
        "[::ffff:127.0.0.1]",
        "0.0.0.0:8000",
    ],
)
def test_this_machine_needs_no_word(host):
    assert EndpointSettings(f"http://{host}/v1", "m", "sk-hunter22").is_this_machine


def test_a_key_in_the_path_is_not_shown():
    judge = EndpointJudge(EndpointSettings("https://host/sk-hunter22/v1", "m", "sk-hunter22"))
    assert judge.settings.shown_url == "https://host/…/v1"
    assert "hunter22" not in repr(EndpointSettings("https://host/v1", "m", "sk-hunter22"))


def test_secrets_in_the_body():
    body = {"extra": {"api_key": "hunter22", "top_k": 3}, "auth": ["hunter23"], "tokenizer": "gpt2"}
    settings = EndpointSettings("https://host/v1", "m", body=body)
    assert settings.secrets == ["hunter22", "hunter23"]
    assert "hunter2" not in repr(settings)


def test_what_is_no_secret_is_shown():
    for url in ("localhost:8000", "ftp://host/v1"):
        with pytest.raises(ValueError, match=f"got '{url}'"):
            EndpointSettings(url, "m")


def test_a_refusal_hangs_nothing_on_the_exception():
    with pytest.raises(ValueError, match="cannot be read") as e:
        EndpointSettings("http://user:hunter22", "m")
    assert e.value.__context__ is None
