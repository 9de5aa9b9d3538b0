import hashlib
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from u2pl_hf.data.source import published_splits
from u2pl_hf.data.source.id_lists import read_ids
from u2pl_hf.data.source.published_splits import COMMIT, PINS, SPLITS, fetch_list
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.errors import InputError

LISTS = {
    "pascal/92/labeled.txt": "a\nb",
    "pascal/92/unlabeled.txt": "c\nd\ne",
    "cityscapes_ael/372/labeled.txt": "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png\n",
    "cityscapes_ael/372/unlabeled.txt": "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png\n",
}
PATH = "pascal/92/labeled.txt"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder as published, with lists of our own whose digests stand in for the real pins; the cache is empty."""
    for path, text in LISTS.items():
        file = tmp_path / "tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        monkeypatch.setitem(PINS, path, hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setenv("U2PL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published_splits, "BACK_OFF", (0, 0))
    return tmp_path / "tree"


@pytest.fixture
def mirror(tree, tmp_path, monkeypatch):
    """The tree behind a web server: (its folder of the commit, the list of requests so far)."""
    commit = tmp_path / "web" / "Haochen-Wang409" / "U2PL" / COMMIT / "data"
    commit.mkdir(parents=True)
    (commit / "splits").symlink_to(tree)
    ael = commit.parents[1] / "with_AEL" / "data" / "splits" / "cityscapes"
    ael.mkdir(parents=True)
    (ael / "372").symlink_to(tree / "cityscapes_ael" / "372")
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form, *args):
            requests.append(args)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "web"))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("U2PL_SPLITS_URL", f"http://127.0.0.1:{server.server_port}/")
    yield commit / "splits", requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch):
    """No server listens there."""
    monkeypatch.setenv("U2PL_SPLITS_URL", "http://127.0.0.1:9")


def test_every_published_split_is_pinned():
    assert len(SPLITS) == 14 and len(PINS) == 28
    for folder in SPLITS.values():
        assert {f"{folder}/labeled.txt", f"{folder}/unlabeled.txt"} <= set(PINS)
    assert all(len(digest) == 64 for digest in PINS.values())


def test_fetched_once_then_cached(mirror, monkeypatch, tmp_path):
    path = fetch_list(PATH)
    assert read_ids(path) == ["a", "b"]
    assert path == tmp_path / "cache" / "splits" / COMMIT / PATH and path.stat().st_mode & 0o444 == 0o444
    assert len(mirror[1]) == 1 and [p.name for p in path.parent.iterdir()] == ["labeled.txt"]
    monkeypatch.setenv("U2PL_SPLITS_URL", "http://127.0.0.1:9")
    assert fetch_list(PATH) == path


def test_split_by_its_published_name(mirror):
    ids = ["e", "x", "a", "b", "d", "c"]
    assert resolve_split("voc_classic/92", ids, 0) == ([2, 3], [0, 4, 5])
    # From the branch; its lines name files.
    assert resolve_split("cityscapes_ael/372", ["aachen_0", "ulm_000000_000019"], 0) == ([1], [0])


def test_offline_without_cache_is_one_line(tree, offline):
    with pytest.raises(
        InputError, match=r"cannot fetch http://127\.0\.0\.1:9/.*/pascal/92/lab.* --splits_dir"
    ) as error:
        resolve_split("voc_classic/92", ["a"], 0)
    assert "\n" not in str(error.value) and COMMIT in str(error.value)


def test_missing_file_is_asked_for_once(mirror):
    with pytest.raises(InputError, match="404"):
        fetch_list("pascal/183/labeled.txt")
    # The request, and the server's own line on the error.
    assert len([r for r in mirror[1] if "GET" in str(r)]) == 1


def test_wrong_download_is_refused_and_not_kept(mirror, tmp_path):
    (mirror[0] / PATH).write_text("a\nb\nc")
    with pytest.raises(InputError, match=f"not the published list .*expected {PINS[PATH][:12]}.*was not kept"):
        fetch_list(PATH)
    assert not list((tmp_path / "cache").glob("**/*.txt*"))


def test_damaged_cache_is_fetched_anew(mirror, monkeypatch, caplog):
    path = fetch_list(PATH)
    path.write_text("z")
    assert fetch_list(PATH) == path and path.read_text() == "a\nb"
    assert "fetching it again" in next(m for m, r in zip(caplog.messages, caplog.records, strict=True)
                                       if r.levelno == logging.WARNING)  # fmt: skip
    path.write_text("z")
    monkeypatch.setenv("U2PL_SPLITS_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot fetch"):
        fetch_list(PATH)


def test_folder_of_the_user_comes_first(tree, offline, tmp_path):
    assert resolve_split("voc_classic/92", list("abcde"), 0, splits_dir=tree) == ([0, 1], [2, 3, 4])
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "data" / "splits").symlink_to(tree)
    assert fetch_list(PATH, splits_dir=repository).read_text() == "a\nb"
    (tree / PATH).write_text("a\nz")
    with pytest.raises(InputError, match=r"labeled\.txt is not the published list"):
        fetch_list(PATH, splits_dir=tree)
    with pytest.raises(InputError, match="is no folder"):
        fetch_list(PATH, splits_dir=tmp_path / "nowhere")


def test_folder_that_lacks_a_list(mirror, tmp_path):
    assert fetch_list(PATH, splits_dir=tmp_path / "web").is_relative_to(tmp_path / "cache")


def test_unusable_cache_and_mirror(mirror, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("U2PL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set U2PL_CACHE"):
        fetch_list(PATH)
    monkeypatch.setenv("U2PL_SPLITS_URL", "no address")
    with pytest.raises(InputError, match="cannot fetch no address"):
        fetch_list(PATH)
