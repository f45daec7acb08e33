"""A hub in a folder: what the client's functions would do there, without a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.training import upload_saes_to_huggingface as saelens_upload

TOKEN = "hf_" + "abcdefgh" * 4
_RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)


@dataclass
class LocalHub:
    """Repositories are folders, branches folders in them.

    Attributes:
        folder: of the repositories.
        private: whether each is.
        commits: what each did: the branch, and paths with a sign.
        fails: raised by the next commit.
    """

    folder: Path
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    fails: Exception | None = None

    def branch(self, repo_id: str, revision: str | None = None) -> Path:
        return self.folder / repo_id / (revision or "main")

    def create_repo(self, repo_id: str, private: bool | None = None) -> None:
        self.private[repo_id] = bool(private)
        self.branch(repo_id).mkdir(parents=True)
        (self.branch(repo_id) / ".gitattributes").write_text("")

    def repo_info(self, repo_id: str, revision: str | None = None) -> Any:
        if repo_id not in self.private:
            raise RepositoryNotFoundError(f"404: {repo_id}", response=_RESPONSE)
        if not self.branch(repo_id, revision).is_dir():
            raise RevisionNotFoundError(f"404: {revision}", response=_RESPONSE)
        return SimpleNamespace(private=self.private[repo_id])

    def create_branch(self, repo_id: str, branch: str) -> None:
        shutil.copytree(self.branch(repo_id), self.branch(repo_id, branch))

    def list_repo_files(self, repo_id: str, revision: str | None = None) -> list[str]:
        root = self.branch(repo_id, revision)
        return [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]

    def create_commit(
        self,
        repo_id: str,
        operations: Iterable[Any],
        commit_message: str,
        revision: str | None = None,
    ) -> Any:
        if self.fails is not None:
            raise self.fails
        root, done = self.branch(repo_id, revision), []
        for one in operations:
            file = root / one.path_in_repo
            if isinstance(one, CommitOperationDelete):
                file.unlink()
                done.append(f"-{one.path_in_repo}")
                continue
            assert isinstance(one, CommitOperationAdd)
            file.parent.mkdir(parents=True, exist_ok=True)
            with one.as_file() as content:
                file.write_bytes(content.read())
            done.append(f"+{one.path_in_repo}")
        self.commits.append((commit_message, done))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/{len(self.commits)}")

    def download(self, repo_id: str, filename: str, force_download: bool = False) -> str:
        file = self.branch(repo_id) / filename
        if not file.is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(file)

    # What SAELens' own upload asks for.

    def upload_folder(
        self,
        *,
        folder_path: Path,
        path_in_repo: str,
        repo_id: str,
        revision: str,
        allow_patterns: list[str],
        **_: Any,
    ) -> None:
        target = self.branch(repo_id, revision) / path_in_repo
        target.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (folder_path / name).is_file():
                shutil.copyfile(folder_path / name, target / name)

    def upload_file(
        self, *, path_or_fileobj: io.BytesIO, path_in_repo: str, repo_id: str, **_: Any
    ) -> None:
        (self.branch(repo_id) / path_in_repo).write_bytes(path_or_fileobj.read())


def use_local_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> LocalHub:
    """The client's functions, and SAELens' download, go to a folder; the token is ``TOKEN``."""
    hub = LocalHub(folder)
    for name in (
        *("create_repo", "repo_info", "create_branch", "list_repo_files", "create_commit"),
        *("upload_folder", "upload_file"),
    ):
        monkeypatch.setattr(HfApi, name, staticmethod(getattr(hub, name)))
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", hub.download)
    monkeypatch.setattr(saelens_upload, "create_repo", hub.create_repo)
    monkeypatch.setattr(
        saelens_upload,
        "_repo_file_exists",
        lambda repo_id, name, revision: (hub.branch(repo_id, revision) / name).is_file(),
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub
