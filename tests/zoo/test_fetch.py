"""Downloads from a server that disconnects, stalls, fails or sends wrong content."""

import hashlib
import multiprocessing
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dcnzoo.utils.fetch import ChecksumError, DownloadError, checksum_in_name, fetch
from tests.helpers.server import Served, serving

CONTENT = random.Random(0).randbytes(3_000_001)  # several chunks, the last one partial
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net_1x_20200130-{SHA[:8]}.pth"


@pytest.fixture
def server():
    plain = {f"/zoo/{NAME}": CONTENT, "/zoo/net.pth": CONTENT, "/zoo/net-00000000.pth": CONTENT}
    with serving(Served(plain)) as served:
        yield served


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once(server, tmp_path, capfd):
    path = fetch(f"{server.url}/zoo/{NAME}", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME and path.read_bytes() == CONTENT
    fetch(f"{server.url}/zoo/{NAME}", path.parent)
    assert len(server.requests) == 1 and names(path.parent) == [NAME]
    assert capfd.readouterr().err == "", "no bar in a log"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ChecksumError, match=f"^{path}: .*damaged"):
        fetch(f"{server.url}/zoo/{NAME}", path.parent)
    assert path.read_bytes() == CONTENT[:-1]
    server.files["/zoo/..%2F..%2Fescaped.pth"] = b"x"
    path = fetch(f"{server.url}/zoo/..%2F..%2Fescaped.pth", tmp_path / "in")
    assert path == tmp_path / "in" / "escaped.pth"


def test_checksums(server, tmp_path):
    url = f"{server.url}/zoo/net-00000000.pth"
    with pytest.raises(ChecksumError, match=f"^{url}: .*00000000.*{SHA[:8]}"):
        fetch(url, tmp_path)
    assert not [name for name in names(tmp_path) if not name.endswith(".lock")]
    fetch(f"{server.url}/zoo/net.pth", tmp_path, checksum=f"sha1:{hashlib.sha1(CONTENT).hexdigest()}")
    with pytest.raises(ChecksumError, match="md5:12"):
        fetch(f"{server.url}/zoo/net.pth", tmp_path / "other", checksum="md5:12")


def test_two_addresses_are_two_files_in_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    names = ["a/net.pth", "b/net.pth", "get?file=a.pth", "get?file=b.pth"]
    server.files |= {f"/{name}": name.encode() for name in names}
    for _ in range(2):
        paths = [fetch(f"{server.url}/{name}") for name in names]
        assert [path.read_bytes().decode() for path in paths] == names
    assert len({*paths}) == 4 == len(server.requests) and paths[0].suffix == ".pth"
    assert fetch(f"{server.url}/zoo/{NAME}").name == NAME
    assert fetch(f"{server.url}/a/net.pth", tmp_path / "own").name == "net.pth"


def test_a_download_that_breaks_begins_anew(server, tmp_path, monkeypatch):
    url = f"{server.url}/zoo/{NAME}"
    server.cuts, server.statuses = [2_000_000], [None, 503]
    for reason in ("", "503"):
        with pytest.raises(DownloadError, match=f"^{url}: .*{reason}.*{tmp_path / NAME}$"):
            fetch(url, tmp_path)
        assert not [name for name in names(tmp_path) if not name.endswith(".lock")]
    assert fetch(url, tmp_path).read_bytes() == CONTENT and names(tmp_path) == [NAME]
    assert [ranged for _, ranged in server.requests] == [None] * 3


def test_addresses_without_a_file(server, tmp_path):
    with pytest.raises(DownloadError, match=f"^{server.url}/nothing.pth: .*404.*{tmp_path / 'nothing.pth'}$"):
        fetch(f"{server.url}/nothing.pth", tmp_path)
    with pytest.raises(DownloadError, match=r"^http://127.0.0.1:9/net.pth: Connection refused"):
        fetch("http://127.0.0.1:9/net.pth", tmp_path)
    for url in ("net.pth", "file:///etc/passwd", "http://example.org/", "http://x/a/..%2f.."):
        with pytest.raises(DownloadError, match="http:// or https://"):
            fetch(url, tmp_path)


def test_offline(server, tmp_path, monkeypatch):
    url = f"{server.url}/zoo/{NAME}"
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"^{url}: .*DCNZOO_OFFLINE.*{tmp_path / NAME}$"):
        fetch(url, tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(url, tmp_path) == tmp_path / NAME and server.requests == []
    monkeypatch.setenv("DCNZOO_OFFLINE", "0")
    fetch(url, tmp_path / "elsewhere")
    assert len(server.requests) == 1


def test_mirror(server, tmp_path, monkeypatch):
    mirrors = f"https://other.example/=http://nowhere/ https://zoo.example/v2={server.url}/zoo"
    monkeypatch.setenv("DCNZOO_MIRROR", mirrors)
    path = fetch(f"https://zoo.example/v2/{NAME}", tmp_path)
    assert path.read_bytes() == CONTENT and server.requests == [(f"/zoo/{NAME}", None)]


def test_one_of_many_downloads(server, tmp_path):
    """Several threads, or several processes, download a file once."""
    url = f"{server.url}/zoo/{NAME}"
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(url, tmp_path), range(6)))
    assert paths == [tmp_path / NAME] * 6 and paths[0].read_bytes() == CONTENT
    with multiprocessing.get_context("fork").Pool(3) as processes:
        processes.starmap(fetch, [(url, tmp_path / "new")] * 3, chunksize=1)
    assert (tmp_path / "new" / NAME).read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        (f"x-{SHA}.pth", f"sha256:{SHA}"),
        ("mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco_20210520_180434-cf8fefa5.pth", "sha256:cf8fefa5"),
        ("faster_rcnn_r50_fpn_c3-c5.pth", None),
        ("vgg13-19584684.pth", "sha256:19584684"),  # only digits, but no date
        ("mine-20210101.pth", None),
        ("mine-20211301.pth", "sha256:20211301"),
        ("mine-20210520180434.pth", None),
    ],
)
def test_checksum_in_name(name, checksum):
    assert checksum_in_name(name) == checksum
