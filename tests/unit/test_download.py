"""Fetching data sets, from a server on this machine: only what is right is kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedtide.errors import DataError, StateError
from simulator.learning.datasets import __main__ as command
from simulator.learning.datasets import download as module
from simulator.learning.datasets import open_data_set
from simulator.learning.datasets.download import download
from simulator.learning.datasets.plays import lines_of_roles
from tests.unit.test_data_sets import idx

Site = dict[str, bytes]


class _Server(ThreadingHTTPServer):
    site: Site


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        content = self.server.site.get(self.path)
        self.send_response(404 if content is None else 200)
        cut = self.path.startswith("/cut")
        self.send_header("Content-Length", str(len(content or b"") + (100 if cut else 0)))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.site = {}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: _Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("top/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def quiet(line: str) -> None:
    pass


@pytest.fixture
def mnist(server: _Server, monkeypatch: pytest.MonkeyPatch) -> _Server:
    sums = {}
    for name in module.MNIST_SUMS:
        shape = (20, 28, 28) if "images" in name else (20,)
        content = idx(np.full(shape, 7, np.uint8))
        sums[name] = sum_of(content)
        server.site[f"/good/{name}.gz"] = gzip.compress(content)
        server.site[f"/wrong/{name}.gz"] = gzip.compress(content[:-1] + b"\x08")
        server.site[f"/garbage/{name}.gz"] = b"<html>no such bucket</html>"
        server.site[f"/cut/{name}.gz"] = gzip.compress(content)
    monkeypatch.setattr(module, "MNIST_SUMS", sums)
    mirrors(monkeypatch, server, "gone", "good")
    return server


def mirrors(monkeypatch: pytest.MonkeyPatch, server: _Server, *folders: str) -> None:
    addresses = tuple(address(server, f"{folder}/") for folder in folders)
    monkeypatch.setattr(module, "MNIST_MIRRORS", addresses)


def test_mnist_from_the_second_mirror(mnist: _Server, tmp_path: Path) -> None:
    told: list[str] = []
    download("mnist", tmp_path / "new", told.append)
    assert len(open_data_set("mnist", tmp_path / "new")) == 20
    assert sorted(path.name for path in (tmp_path / "new/mnist").iterdir()) == sorted(
        module.MNIST_SUMS
    )
    assert len(told) >= 4
    assert address(mnist, "good/train-images-idx3-ubyte.gz") in "\n".join(told)


def test_what_is_there_is_left_alone(mnist: _Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/train-images-idx3-ubyte").write_bytes(b"mine")
    (tmp_path / "mnist/train-labels-idx1-ubyte.gz").write_bytes(b"mine")
    download("mnist", tmp_path, quiet)
    assert (tmp_path / "mnist/train-images-idx3-ubyte").read_bytes() == b"mine"
    assert not (tmp_path / "mnist/train-labels-idx1-ubyte").exists()
    assert (tmp_path / "mnist/t10k-labels-idx1-ubyte").exists()


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("gone", "cannot be fetched: HTTP Error 404"),
        ("wrong", r"has the SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; nothing was kept"),
        ("garbage", "is damaged: Not a gzipped file"),
        ("cut", r"cannot be fetched: .*IncompleteRead|ended after"),
    ],
)
def test_nothing_wrong_is_kept(
    mnist: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, said: str
) -> None:
    mirrors(monkeypatch, mnist, folder)
    with pytest.raises(DataError, match=said) as caught:
        download("mnist", tmp_path, quiet)
    assert address(mnist, folder) in str(caught.value)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_every_mirror_is_named_when_all_fail(
    mnist: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors(monkeypatch, mnist, "gone", "garbage")
    with pytest.raises(DataError, match=r"/gone/(.|\n)*/garbage/"):
        download("mnist", tmp_path, quiet)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as closed:
        port = closed.server_port
    monkeypatch.setattr(module, "PLAYS_URL", f"http://127.0.0.1:{port}/plays")
    with pytest.raises(DataError, match=r"cannot be fetched: .*refused"):
        download("shakespeare", tmp_path, quiet)


def test_more_than_there_may_be(
    mnist: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 50)
    with pytest.raises(DataError, match="more than 50 bytes"):
        download("mnist", tmp_path, quiet)


def test_an_archive_that_grows(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.site["/plays"] = packed(
        {"top/a/full.html": bytes(5_000), "top/b/full.html": bytes(5_000)}
    )
    monkeypatch.setattr(module, "PLAYS_URL", address(server, "plays"))
    monkeypatch.setattr(module, "BYTES_MAX", 4_000)
    with pytest.raises(DataError, match="unpacks to more than 8,000 bytes"):
        download("shakespeare", tmp_path, quiet)
    assert not list(tmp_path.iterdir())


def cifar10_files() -> dict[str, bytes]:
    names = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
    return {name: (bytes([3]) + bytes(3072)) * 2 for name in names}


def test_cifar10(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {f"cifar-10-batches-bin/{name}": part for name, part in cifar10_files().items()}
    archive = packed({**inside, "../../escaped": b"x", "/tmp/escaped": b"x"})
    server.site["/cifar"] = archive
    monkeypatch.setattr(module, "CIFAR10_URL", address(server, "cifar"))
    with pytest.raises(DataError, match="expected c4a38c50"):
        download("cifar10", tmp_path, quiet)
    monkeypatch.setattr(module, "CIFAR10_SUM", sum_of(archive))
    download("cifar10", tmp_path, quiet)
    assert len(open_data_set("cifar10", tmp_path)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]
    assert len(list((tmp_path / "cifar-10-batches-bin").iterdir())) == 6
    server.site.clear()
    download("cifar10", tmp_path, quiet)  # all is there: nobody is asked


PAGE = """<html><h3>SCENE I</h3><blockquote><A NAME=1.1.1>Nobody's line</A><br></blockquote>
<A NAME=speech1><b>FIRST</b></a>
<blockquote>
<A NAME=1.1.2>Good  morrow &amp;\t<i>welcome</i>,</A><br>
<p><i>Exit</i></p>
<A NAME=1.1.3>friend.</A><br>
</blockquote>
<A NAME=speech2><b>FIRST</b></a>

<A NAME=speech3><b>SECOND</b></a>
<blockquote><A NAME=1.1.4>Both!</A><br></blockquote>
<A NAME=speech4><b>FIRST</b></a><blockquote><A NAME=4></A><A NAME=5>Again.</A></blockquote>
"""


def test_lines_of_roles() -> None:
    assert lines_of_roles(PAGE) == {
        "FIRST": ["Good morrow & welcome,", "friend.", "Again."],
        "FIRST\n\nSECOND": ["Both!"],
    }
    assert lines_of_roles("") == {}


def test_the_plays(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.encode("latin-1")
    server.site["/plays"] = packed(
        {
            "top/b/full.html": page,
            "top/a/full.html": page,
            "top/History/c/full.html": page,
            "top/a/other.html": page,
        }
    )
    monkeypatch.setattr(module, "PLAYS_URL", address(server, "plays"))
    roles = [
        {"play": play, "role": role, "lines": lines}
        for play in "ab"
        for role, lines in lines_of_roles(PAGE).items()
    ]
    content = "".join(json.dumps(role) + "\n" for role in roles).encode()
    with pytest.raises(DataError, match="expected a68ce925"):
        download("shakespeare", tmp_path, quiet)
    monkeypatch.setattr(module, "PLAYS_SUM", sum_of(content))
    download("shakespeare_words", tmp_path, quiet)
    path = tmp_path / "shakespeare_by_role.jsonl.gz"
    assert gzip.decompress(path.read_bytes()) == content
    assert len(open_data_set("shakespeare", tmp_path)) == 4


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="file"):
        download("mnist", tmp_path / "file", quiet)


def test_the_command(mnist: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["mnist", "--data-dir", str(tmp_path)]) == 4
    assert "--download" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # never without being asked
    assert command.main(["mnist", "--data-dir", str(tmp_path), "--download"]) == 0
    assert "20 examples to train on, 20 to test" in capsys.readouterr().out
    assert command.main(["digits", "--download"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert command.main(["--data-dir", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "mnist: MNIST, 20 images" in listed
    assert "shakespeare: data set 'shakespeare' needs" in listed
    with pytest.raises(SystemExit):
        command.main(["--download"])
