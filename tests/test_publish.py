"""Exports that are uploaded: a stand-in for the hub on this machine, and who is refused by it."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from huggingface_hub import constants

from reports import fill, folded, run_record
from steerheal.cli import main
from steerheal.errors import UserError
from steerheal.models.publish import refuse_unwritable, upload


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload of small files needs."""

    role: ClassVar[str] = "write"
    calls: ClassVar[list[str]] = []
    files: ClassVar[dict[str, bytes]] = {}
    private: ClassVar[bool | None] = None

    def do_GET(self) -> None:
        Hub.calls.append(self.path)
        if self.headers["Authorization"] == "Bearer hf_good":
            self._answer({"name": "ada", "auth": {"accessToken": {"role": Hub.role}}})
        else:
            self._answer({"error": "Invalid credentials"}, 401)

    def do_POST(self) -> None:
        Hub.calls.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/create"):
            asked = json.loads(body)
            Hub.private = asked.get("private") or asked.get("visibility") == "private"
            self._answer({"url": f"{constants.ENDPOINT}/ada/calm"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": one["path"], **how} for one in files]})
        elif "/validate-yaml" in self.path:
            self._answer({"errors": [], "warnings": []})
        else:
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    content = base64.b64decode(item["value"]["content"])
                    Hub.files[item["value"]["path"]] = content
            self._answer(
                {
                    "commitOid": "0" * 40,
                    "commitUrl": f"{constants.ENDPOINT}/ada/calm/commit/0",
                    "hookOutput": "",
                }
            )

    def _answer(self, found: dict[str, Any], status: int = 200) -> None:
        self.send_response(status)
        content = json.dumps(found).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    Hub.calls, Hub.files, Hub.role, Hub.private = [], {}, "write", None
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_folder_is_uploaded_whole_to_a_repository_that_is_made_private(
    hub: type[Hub], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    (folder / "more").mkdir(parents=True)
    (folder / "README.md").write_text("# a card\n")
    (folder / "more" / "numbers.bin").write_bytes(bytes(range(256)))
    refuse_unwritable("ada/calm")
    assert upload(folder, "ada/calm", "peft of round 1").endswith("/ada/calm")
    assert hub.private and hub.files == {
        "README.md": b"# a card\n", "more/numbers.bin": bytes(range(256))
    }  # fmt: skip


def test_who_may_not_upload_is_told_before_anything_is_exported(
    hub: type[Hub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fill(tmp_path / "run", run_record(rounds=(folded(0),)))

    def refused(repository: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(run), "--push", repository])
        assert stop.value.code == 2 and not [*run.glob("export*")]
        return capsys.readouterr().err

    assert "is no name of a repository" in refused("a/b/c")
    hub.role = "read"
    assert "ada may only read" in refused("ada/calm")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "refuses the login" in refused("ada/calm") and "hf auth login" in refused("ada/calm")
    monkeypatch.delenv("HF_TOKEN")
    called = len(hub.calls)
    assert "nobody is logged in" in refused("ada/calm") and len(hub.calls) == called
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "does not answer" in refused("ada/calm")
    assert not hub.files and hub.private is None


def test_an_upload_that_fails_says_where_the_export_is(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# a card\n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf upload ada/calm"):
        upload(tmp_path, "ada/calm", "peft of round 1")
    assert not hub.calls
