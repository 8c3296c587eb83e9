"""The viewer's server gives what it should, and nothing else."""

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import numpy as np
import pydantic
import pytest
from recorded import make_run, record
from starlette.testclient import TestClient

from neurocoder.runs.cli import main
from neurocoder.runs.replay import programs
from neurocoder.runs.replay.episode import RecordedEpisode, read_info
from neurocoder.runs.replay.page import return_to_go, softmax
from neurocoder.runs.viewer.server import create_app

KEY = "ALE-Pong-v5/run/episodes/100-7"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(make_run(tmp_path_factory.mktemp("viewer") / "logs"), seed=7, stuck_after=65)


@pytest.fixture
def logs(pristine: Path, tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    shutil.copytree(pristine, logs / KEY)
    return logs


@pytest.fixture
def client(logs: Path) -> TestClient:
    return TestClient(create_app(logs), base_url="http://127.0.0.1:8400")


def test_episodes_are_listed(client: TestClient, pristine: Path) -> None:
    (listed,) = client.get("/api/episodes").json()["episodes"]
    info = read_info(pristine)
    assert listed["key"] == KEY and listed["env"] == "ALE/Pong-v5" and listed["seed"] == 7
    assert listed["length"] == info.length and listed["return"] == info.raw_return
    assert client.get(listed["thumbnail"]).headers["content-type"] == "image/webp"


def test_no_schema_is_made_while_answering(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("made in a thread, where CPython 3.11 may fail")

    monkeypatch.setattr(pydantic, "TypeAdapter", refuse)
    (listed,) = client.get("/api/episodes").json()["episodes"]
    for path in (listed["thumbnail"], f"/api/episode/{quote(KEY)}"):
        assert client.get(path).status_code == 200


def unpack(packed: dict) -> np.ndarray:
    kinds = {"f4": "<f4", "u1": "u1", "i4": "<i4"}
    data = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(data, kinds[packed["dtype"]]).reshape(packed["shape"])


def test_the_page_is_told_what_was_recorded(client: TestClient, pristine: Path) -> None:
    told = client.get(f"/api/episode/{KEY}").json()
    trace = RecordedEpisode.open(pristine).trace
    arrays = {name: unpack(packed) for name, packed in told["arrays"].items()}
    np.testing.assert_array_equal(arrays["action"], trace["action"])
    np.testing.assert_array_equal(arrays["reward"], trace["reward"])
    np.testing.assert_array_equal(arrays["value"], trace["value"])
    np.testing.assert_allclose(arrays["probabilities"].sum(axis=1), 1, rtol=1e-5)
    first = told["programs"][0]
    assert (first["head"], first["memory"], first["slots"]) == ("actor", "U", 8)
    restored = arrays[first["low"]] + arrays[first["step"]] * arrays[first["codes"]].T
    np.testing.assert_allclose(restored, trace["attention/actor/U"], rtol=1e-6)
    np.testing.assert_allclose(arrays[first["mean"]], restored.mean(axis=0), rtol=1e-5)
    chapters = programs.chapters(trace["attention/actor/U"])
    assert [(c["start"], c["stop"], c["slot"]) for c in first["chapters"]] == [tuple(c) for c in chapters]
    assert sum(c["reward"] for c in first["chapters"]) == told["return"]
    strips = told["frames"]["strips"]
    assert told["frames"]["count"] == told["length"] + 1 and len(strips) == -(-told["frames"]["count"] // 64)
    assert client.get(strips[1]).content == (pristine / "frames" / "001.webp").read_bytes()


def test_the_return_to_go_is_discounted_and_of_clipped_rewards() -> None:
    np.testing.assert_allclose(
        return_to_go(np.array([0.0, 5.0, 0.0, -1.0]), 0.5), [0.375, 0.75, -0.5, -1.0], rtol=1e-6
    )


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]]) + 900), [[0.25, 0.75]], rtol=1e-4)


def test_every_answer_is_locked_down(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/api/episodes", f"/api/episode/{KEY}", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0"])
def test_a_foreign_host_header_is_turned_away(client: TestClient, host: str) -> None:
    answer = client.get("/api/episodes", headers={"host": f"{host}:8400"})
    assert answer.status_code == 400 and "Pong" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/api/episode/../../secret.txt",
        "/api/episode/..%2f..%2fsecret",
        "/api/episode//etc",
        "/frames/../secret.txt",
        f"/frames/{KEY}/../trace.npz",
        f"/frames/{KEY}/..%2ftrace.npz",
        f"/frames/{KEY}/episode.json",
        f"/frames/{KEY}/-1.webp",
        f"/frames/{KEY}/999999.webp",
        f"/frames/{KEY}/².webp",
        "/api/thumbnail/..",
        "/api/thumbnail/%00",
    ],
)
def test_nothing_else_can_be_asked_for(client: TestClient, logs: Path, path: str) -> None:
    (logs.parent / "secret.txt").write_text("treasure")
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]
    assert "treasure" not in answer.text


def test_links_that_lead_out_are_not_followed(logs: Path, pristine: Path, client: TestClient) -> None:
    outside = logs.parent / "outside"
    shutil.copytree(pristine, outside)
    (logs / "link").symlink_to(outside, target_is_directory=True)
    stolen = logs / "stolen"
    stolen.mkdir()
    (stolen / "episode.json").symlink_to(outside / "episode.json")
    listed = client.get("/api/episodes").json()
    assert [episode["key"] for episode in listed["episodes"]] == [KEY]
    assert "leads out" in listed["problems"][0]["error"]
    for name in ("trace.npz", "frames"):
        shutil.rmtree(logs / KEY)
        shutil.copytree(pristine, logs / KEY)
        file = logs / KEY / name
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.symlink_to(outside / name)
        path = f"/api/episode/{KEY}" if name == "trace.npz" else f"/frames/{KEY}/000.webp"
        assert "leads out" in client.get(path).json()["error"]
    assert "leads out" in client.get(f"/api/thumbnail/{KEY}").json()["error"]


def test_what_is_damaged_is_told(logs: Path, client: TestClient) -> None:
    folder = logs / KEY
    strip = folder / "frames" / "001.webp"
    strip.write_bytes(strip.read_bytes()[:20])
    assert "damaged" in client.get(f"/frames/{KEY}/001.webp").json()["error"]
    (folder / "trace.npz").write_bytes(b"PK")
    answer = client.get(f"/api/episode/{KEY}")
    assert answer.status_code == 404 and "trace.npz: damaged" in answer.json()["error"]
    (folder / "episode.json").write_text(json.dumps({"schema": 99}))
    listed = client.get("/api/episodes").json()
    assert listed["episodes"] == [] and "schema 99, this version reads 1" in listed["problems"][0]["error"]


def test_a_name_like_a_script_is_only_a_name(logs: Path) -> None:
    name = "<script>alert(1)<"
    (logs / KEY).rename(logs / name)
    client = TestClient(create_app(logs), base_url="http://127.0.0.1")
    (listed,) = client.get("/api/episodes").json()["episodes"]
    assert listed["key"] == name
    assert client.get(f"/api/episode/{quote(name)}").json()["key"] == name


def test_new_episodes_are_announced(logs: Path, pristine: Path) -> None:
    """A real server in a process of its own; the list changes while somebody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "neurocoder"
    server = subprocess.Popen(
        [program, "watch", str(logs), "--port", str(port), "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(url).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with httpx.stream("GET", f"{url}/api/live", timeout=60) as live:
            time.sleep(1.5)  # it looks once before it can see a change
            shutil.copytree(pristine, logs / "another" / "100-8")
            assert next(line for line in live.iter_lines() if line) == "data: changed"
        busy = subprocess.run(
            [program, "watch", str(logs), "--port", str(port), "--no-browser"], capture_output=True, text=True
        )
        assert busy.returncode == 2 and busy.stderr.count("\n") == 1
        assert f"--port {port}: Address already in use; choose another" in busy.stderr
        with httpx.stream("GET", f"{url}/api/live", timeout=60):  # somebody still listens
            server.send_signal(2)
            assert server.wait(20) == 0
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def test_one_episode_can_be_watched_by_itself(pristine: Path) -> None:
    client = TestClient(create_app(pristine), base_url="http://127.0.0.1")
    (listed,) = client.get("/api/episodes").json()["episodes"]
    assert listed["key"] == pristine.name
    told = client.get(f"/api/episode/{pristine.name}").json()
    assert client.get(told["frames"]["strips"][0]).status_code == 200


def test_the_export_is_whole_and_safe(logs: Path, tmp_path: Path) -> None:
    info = json.loads((logs / KEY / "episode.json").read_text())
    info["env"] = "</script><script>alert(1)</script>"
    (logs / KEY / "episode.json").write_text(json.dumps(info))
    out = tmp_path / "episode.html"
    assert main(["replay", "export", str(logs / KEY), str(out)]) == 0
    page = out.read_text("utf-8")
    assert "alert(1)</script>" not in page and "/static/" not in page
    assert page.count('class="episode"') == 1 and "http://" not in page.replace("http://www.w3.org", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode.html", "logs"]
