"""examples/: each runs as its first lines say, against a real daemon."""

import asyncio
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import pytest

from jqd.client.sync import Client
from tests.support.daemon import ROOT, Daemon, environment
from tests.support.until import PATIENCE_S, happens

pytestmark = pytest.mark.e2e

EXAMPLES = ROOT / "examples"


class Scene:
    """A daemon, a client of it, and programs that are started in examples/ as a user does it."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.client = Client(url)

    def environment(self) -> dict[str, str]:
        return {**environment(), "JQD_URL": self.url, "PYTHONPATH": str(ROOT)}

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a module of Python until the block ends, by SIGTERM; what it says is kept in a file."""
        with (self.directory / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=EXAMPLES,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, (self.directory / "worker.log").read_text()
        finally:
            process.kill()
            process.wait(PATIENCE_S)

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words],
            cwd=EXAMPLES,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def state(self, job_id: int) -> str:
        return self.client.get(job_id).state


@pytest.fixture
def scene(tmp_path) -> Iterator[Scene]:
    with Daemon(tmp_path / "data") as daemon:
        made = Scene(tmp_path, f"unix://{daemon.socket_path}")
        yield made
        made.client.close()


# --- the web app and its worker ---------------------------------------------------------------


class Receiver:
    """An HTTP server that answers as it is told, then 200, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.got: list[tuple[str, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.got.append((self.headers["Idempotency-Key"], body))
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE_S)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


class Browser:
    """Asks the web app as its server does, in one event loop, between its start and its end."""

    def __init__(self, api: Any) -> None:
        self._runner = asyncio.Runner()
        self._lifespan = api.router.lifespan_context(api)
        transport = httpx.ASGITransport(app=api)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://shop.example")

    def __enter__(self) -> Self:
        self._runner.run(self._lifespan.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.run(self._client.aclose())
        self._runner.close()

    def get(self, path: str) -> httpx.Response:
        return self._runner.run(self._client.get(path))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.post(path, **options))


@pytest.fixture
def browser(scene, monkeypatch) -> Iterator[Browser]:
    monkeypatch.setenv("JQD_URL", scene.url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("web", "webhooks"):
        sys.modules.pop(name, None)
    from web import api

    with Browser(api) as made:
        yield made


def is_in(browser: Browser, path: str, state: str) -> bool:
    said: str = browser.get(path).json()["state"]
    return said == state


def test_an_order_is_taken_and_its_receiver_is_told(scene, browser, receiver):
    order = {"item": "tea", "notify": receiver.url}
    said = browser.post("/orders", json=order, headers={"Idempotency-Key": "order-1"})
    assert said.status_code == 202
    again = browser.post("/orders", json=order, headers={"Idempotency-Key": "order-1"})
    other = browser.post("/orders", json={**order, "item": "milk"})
    job_id, other_id = said.json()["job_id"], other.json()["job_id"]
    assert again.json()["job_id"] == job_id != other_id
    assert browser.get(f"/orders/{job_id}").json() == {"state": "ready", "attempt": 0, "error": None}
    with scene.running("jqd", "worker", "webhooks:app", "-q", "webhooks"):
        happens(lambda: all(is_in(browser, f"/orders/{each}", "done") for each in (job_id, other_id)))
    assert sorted(receiver.got) == sorted([(job_id, {"item": "tea"}), (other_id, {"item": "milk"})])


def test_a_receiver_says_when_to_try_again_and_that_there_is_no_use(scene, browser, receiver):
    receiver.answers = [(503, {"Retry-After": "1"}), (200, {}), (410, {})]
    order = {"item": "tea", "notify": receiver.url}
    with scene.running("jqd", "worker", "webhooks:app", "-q", "webhooks", "-c", "1"):
        first = browser.post("/orders", json=order).json()["job_id"]
        happens(lambda: is_in(browser, f"/orders/{first}", "done"))
        second = browser.post("/orders", json=order).json()["job_id"]
        happens(lambda: is_in(browser, f"/orders/{second}", "dead"))
    info = scene.client.get(int(first))
    assert (info.attempt, info.errors, [each.error for each in info.attempts]) == (2, 1, ["HTTP 503"])
    assert browser.get(f"/orders/{second}").json() == {"state": "dead", "attempt": 1, "error": "HTTP 410"}


def test_without_a_daemon_nothing_is_promised(browser, receiver):
    import webhooks

    webhooks.app.redirect("unix:///nowhere/jqd.sock")
    said = browser.post("/orders", json={"item": "tea", "notify": receiver.url})
    assert said.status_code == 503 and "cannot reach" in said.json()["detail"]


def test_what_nobody_ordered_and_what_makes_no_sense_is_said(browser):
    assert browser.get("/orders/77").status_code == 404
    assert browser.post("/orders", json={"item": "tea", "notify": "nowhere"}).status_code == 422


# --- the others -------------------------------------------------------------------------------


def test_words_are_counted_by_many_and_added_up(scene, tmp_path):
    for name, text in (("a", "one two"), ("b", "three"), ("c", "")):
        (tmp_path / name).write_text(text)
    (tmp_path / "no text").write_bytes(b"\xff")
    with scene.running("jqd", "worker", "fan_out:app", "-c", "2", "--pool", "process"):
        done = scene.run("fan_out.py", *(str(tmp_path / name) for name in "abc"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
        done = scene.run("fan_out.py", *(str(tmp_path / name) for name in ("a", "nowhere", "no text")))
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert [info.attempt for info in scene.client.list(state="dead").jobs] == [1, 1]
    assert "No such file or directory" in done.stderr and "can't decode byte 0xff" in done.stderr


def test_a_script_does_jobs(scene, tmp_path):
    (tmp_path / "a b").write_text("x")
    (tmp_path / "half").write_text("x")
    (tmp_path / "half.part").touch()
    words = ("jqctl", "work", "checksums", "--exec", "./checksum.sh {}", "-j", "2", "--retry-in", "1s")
    jobs = [
        scene.client.submit("checksums", str(tmp_path / name)).job_id for name in ("a b", "nowhere", "half")
    ]
    with scene.running(*words):
        happens(lambda: [scene.state(job) for job in jobs] == ["done", "dead", "delayed"])
        os.unlink(tmp_path / "half.part")
        happens(lambda: scene.state(jobs[2]) == "done")
    good, dead, late = map(scene.client.get, jobs)
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert msgspec.msgpack.decode(good.result) == f"{digest}  {tmp_path}/a b\n"
    assert dead.reason == "refused" and "no such file" in dead.error
    assert (late.attempt, late.errors) == (1, 0)


def test_every_example_is_in_the_table_and_here():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    assert all(f"[{name}]({name})" in page for name in names)
    assert all(name.removesuffix(".py") in here for name in names)
