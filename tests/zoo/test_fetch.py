"""Downloads from a server that disconnects, stalls, fails or sends wrong content."""

import hashlib
import io
import multiprocessing
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from rich.console import Console

from dcnzoo.utils import fetch as module
from dcnzoo.utils.fetch import ChecksumError, DownloadError, checksum_in_name, fetch, verify

from .server import Served, serving

CONTENT = random.Random(0).randbytes(3_000_001)  # several chunks, the last one partial
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net_1x_20200130-{SHA[:8]}.pth"


@pytest.fixture
def server():
    plain = {f"/zoo/{NAME}": CONTENT, "/zoo/net.pth": CONTENT, "/zoo/net-00000000.pth": CONTENT}
    with serving(Served(plain)) as served:
        yield served


@pytest.fixture
def screen(monkeypatch):
    """What is printed; call it with options of rich's console."""
    file, options = io.StringIO(), {}
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=file, width=1000, **options))
    file.options = options
    return file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file(server, tmp_path, screen):
    path = fetch(f"{server.url}/zoo/{NAME}", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME and path.read_bytes() == CONTENT
    assert names(path.parent) == [NAME], "nothing else stays"
    fetch(f"{server.url}/zoo/{NAME}", path.parent)
    assert len(server.requests) == 1, "not asked for again"
    path.write_bytes(CONTENT[:-1])
    assert screen.getvalue() == "", "no bar in a log"
    fetch(f"{server.url}/zoo/{NAME}", path.parent)
    assert path.read_bytes() == CONTENT and str(path) in screen.getvalue()
    assert names(path.parent) == [NAME, f"{NAME}.refused"]
    server.files["/zoo/..%2F..%2Fescaped.pth"] = b"x"
    path = fetch(f"{server.url}/zoo/..%2F..%2Fescaped.pth", tmp_path / "in")
    assert path == tmp_path / "in" / "escaped.pth"


def test_checksums(server, tmp_path):
    url, aside = f"{server.url}/zoo/net-00000000.pth", tmp_path / "net-00000000.pth.refused"
    for _ in range(2):
        with pytest.raises(ChecksumError, match=f"^{url}: .*00000000.*{SHA[:8]}.*{aside}"):
            fetch(url, tmp_path)
        assert names(tmp_path) == [".net-00000000.pth.lock", aside.name]
        assert aside.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, None], "begun anew"
    fetch(f"{server.url}/zoo/net.pth", tmp_path, checksum=f"sha1:{hashlib.sha1(CONTENT).hexdigest()}")
    with pytest.raises(ChecksumError, match="md5 12"):
        fetch(f"{server.url}/zoo/net.pth", tmp_path / "other", checksum="md5:12")


def test_two_addresses_are_two_files(server, tmp_path, monkeypatch):
    """In the cache, unless the name has a checksum; a row of the zoo keeps its name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    long = "n" * 300
    names = ["a/net.pth", "b/net.pth", "n%00l.pth", f"{long}-{'0' * 8}/x.pth"]
    names += ["get?file=a.pth", "get?file=b.pth", f"{long}.pth", f"{long}2.pth"]
    with pytest.raises(DownloadError, match="empty"):
        server.files["/empty.pth"] = b""
        fetch(f"{server.url}/empty.pth")
    server.requests.clear()
    server.files |= {f"/{name}": name.encode() for name in names}
    for _ in range(2):
        paths = [fetch(f"{server.url}/{name}") for name in names]
        assert [path.read_bytes().decode() for path in paths] == names
    assert len({*paths}) == 8 == len(server.requests) and paths[0].suffix == ".pth"
    assert fetch(f"{server.url}/a/net.pth#part") == paths[0]
    assert fetch(f"{server.url}/zoo/{NAME}").name == NAME
    assert fetch(f"{server.url}/b/net.pth", name="net.pth").name == "net.pth"
    assert fetch(f"{server.url}/a/net.pth", tmp_path / "own").name == "net.pth"


def test_broken_connection_goes_on_by_itself(server, tmp_path, monkeypatch, screen):
    server.cuts = [1_000_000, 500_000]
    screen.options["force_terminal"] = True
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(module, "_RETRIES", 1)
    path = fetch(f"{server.url}/zoo/{NAME}", tmp_path)
    assert path.read_bytes() == CONTENT and names(tmp_path) == [NAME]
    starts = [re.fullmatch(r"bytes=(\d+)-", wanted)[1] for _, wanted in server.requests[1:]]
    assert len(starts) == 2 and 0 < int(starts[0]) <= 1_000_000 and int(starts[0]) < int(starts[1])
    assert NAME in screen.getvalue() and "3.0/3.0" in re.sub(r"\x1b\[[^m]*m", "", screen.getvalue())


def fetch_once(url, folder, monkeypatch):
    """Fail at the first interruption."""
    message = f"^{url}: the connection broke off; "
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match=message):
        patch.setattr(module, "_RETRIES", 0)
        fetch(url, folder)


def test_next_call_goes_on(server, tmp_path, monkeypatch):
    url, part = f"{server.url}/zoo/{NAME}", tmp_path / f"{NAME}.part"
    server.cuts = [2_000_000]
    fetch_once(url, tmp_path, monkeypatch)
    kept = part.stat().st_size
    assert 0 < kept <= 2_000_000 and not (tmp_path / NAME).exists()
    for more, asked in ((None, kept), (b"", len(CONTENT)), (b"more", len(CONTENT) + 4)):
        if more is not None:  # a complete or too long partial file
            part.write_bytes(CONTENT + more)
            part.with_name(f"{part.name}.tag").write_text(server.etag)
        server.requests.clear()
        assert fetch(url, tmp_path).read_bytes() == CONTENT and names(tmp_path) == [NAME]
        assert [wanted for _, wanted in server.requests] == [f"bytes={asked}-", *([None] if more else [])]
        (tmp_path / NAME).unlink()


@pytest.mark.parametrize(("etags", "ranges"), [("11", True), ("11", False), ("12", True), (None, True)])
def test_file_without_checksum_that_may_have_changed(server, tmp_path, monkeypatch, etags, ranges):
    """Two versions are never mixed: unless the ETag is the same, the download starts again."""
    server.cuts, server.ranges = [2_000_000], ranges
    server.etag = etags and f'"{etags[0]}"'
    fetch_once(f"{server.url}/zoo/net.pth", tmp_path, monkeypatch)
    if etags != "11":
        server.files["/zoo/net.pth"] = bytes(reversed(CONTENT))
    server.etag = etags and f'"{etags[1]}"'
    assert fetch(f"{server.url}/zoo/net.pth", tmp_path).read_bytes() == server.files["/zoo/net.pth"]
    assert (server.requests[1][1] is not None) == (etags is not None)


def test_server_that_errs_for_a_while(server, tmp_path, monkeypatch):
    server.statuses = [503, 500, 429]
    assert fetch(f"{server.url}/zoo/{NAME}", tmp_path).read_bytes() == CONTENT
    server.statuses = [503] * 4
    with pytest.raises(DownloadError, match=r"net\.pth: .*503 "):
        fetch(f"{server.url}/zoo/net.pth", tmp_path)
    assert server.statuses == []
    monkeypatch.setattr(module, "_TIMEOUT", 0.5)
    server.stalls = [0, 1_500_000]
    assert fetch(f"{server.url}/zoo/{NAME}", tmp_path / "new").read_bytes() == CONTENT
    server.stalls = [0, 0]
    with pytest.raises(DownloadError, match=r"net\.pth: .*timed out"):
        fetch(f"{server.url}/zoo/net.pth", tmp_path)
    assert server.stalls == []


def test_no_use_in_asking(server, tmp_path):
    with pytest.raises(DownloadError, match=f"^{server.url}/nothing.pth: .*404.*{tmp_path / 'nothing.pth'}$"):
        fetch(f"{server.url}/nothing.pth", tmp_path)
    assert len(server.requests) == 1
    for url in ("net.pth", "file:///etc/passwd", "http://example.org/", "http://x/a/..%2f.."):
        with pytest.raises(DownloadError, match="http:// or https://"):
            fetch(url, tmp_path)


def test_nobody_there(tmp_path, monkeypatch):
    """If nothing ever answers, it gives up after two attempts."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    url = "http://127.0.0.1:9/net.pth"
    with pytest.raises(DownloadError, match=f"^{url}: Connection refused.*{tmp_path / 'net.pth'}$"):
        fetch(url, tmp_path)
    assert len(waits) == 1


def test_server_that_is_away_for_a_while(server, tmp_path, monkeypatch):
    """After a first answer, a refused connection is retried like other interruptions."""
    server.cuts = [1_000_000]
    get, calls = requests.Session.get, []

    def sometimes(self, *args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 3):
            args = ("http://127.0.0.1:9/net.pth",)
        return get(self, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "get", sometimes)
    assert fetch(f"{server.url}/zoo/{NAME}", tmp_path).read_bytes() == CONTENT
    assert len(calls) == 4


def test_offline(server, tmp_path, monkeypatch):
    url = f"{server.url}/zoo/{NAME}"
    monkeypatch.setenv(module.OFFLINE, "1")
    with pytest.raises(DownloadError, match=f"^{url}: .*{NAME}.*{tmp_path}.*{module.OFFLINE}"):
        fetch(url, tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(url, tmp_path) == tmp_path / NAME
    assert server.requests == []
    monkeypatch.setenv(module.OFFLINE, "0")
    fetch(url, tmp_path / "elsewhere")
    assert len(server.requests) == 1


def test_mirror(server, tmp_path, monkeypatch):
    mirrors = f"https://other.example/=http://nowhere/ https://zoo.example/v2={server.url}/zoo"
    monkeypatch.setenv(module.MIRROR, mirrors)
    path = fetch(f"https://zoo.example/v2/{NAME}", tmp_path)
    assert path.read_bytes() == CONTENT and server.requests == [(f"/zoo/{NAME}", None)]
    monkeypatch.setenv(module.MIRROR, server.url)
    with pytest.raises(DownloadError, match=f"^{module.MIRROR}: .*{server.url}"):
        fetch(f"https://zoo.example/v2/{NAME}", tmp_path / "other")


def test_one_of_many_downloads(server, tmp_path):
    """From several threads, and from several processes."""
    url = f"{server.url}/zoo/{NAME}"
    server.cuts = [1_000_000]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: fetch(url, tmp_path), range(6)))
    assert found == [tmp_path / NAME] * 6 and found[0].read_bytes() == CONTENT
    assert [wanted is None for _, wanted in server.requests] == [True, False]
    assert names(tmp_path) == [NAME]
    server.requests.clear()
    with multiprocessing.get_context("fork").Pool(3) as processes:
        processes.starmap(fetch, [(url, tmp_path / "new")] * 3, chunksize=1)
    assert len(server.requests) == 1 and (tmp_path / "new" / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200130-d099253b.pth", "sha256:d099253b"),
        (f"x-{SHA}.pth", f"sha256:{SHA}"),
        ("mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco_20210520_180434-cf8fefa5.pth", "sha256:cf8fefa5"),
        ("faster_rcnn_r50_fpn_c3-c5.pth", None),
        ("d099253b.pth", None),
        ("vgg13-19584684.pth", "sha256:19584684"),  # only digits, but no date
        ("mine-20210101.pth", None),
        ("mine-20211301.pth", "sha256:20211301"),
        ("mine-20210520180434.pth", None),
    ],
)
def test_checksum_in_name(name, checksum):
    assert checksum_in_name(name) == checksum


def test_verify(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(CONTENT)
    assert verify(path) == f"sha256:{SHA}"
    assert verify(path, "md5:") == f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    path.write_bytes(CONTENT[1:])
    with pytest.raises(ChecksumError, match=SHA[:8]):
        verify(path)
    with pytest.raises(ChecksumError, match="not checked"):
        verify(Path(__file__))
