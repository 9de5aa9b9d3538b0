import hashlib
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from u2pl_hf.data.source import published_splits
from u2pl_hf.data.source.id_lists import read_ids
from u2pl_hf.data.source.published_splits import (
    COMMIT,
    ORIGINS,
    PINS,
    SPLITS,
    UNIMATCH_V2,
    UNIMATCH_V2_COMMIT,
    fetch_list,
)
from u2pl_hf.data.source.splits import resolve_split
from u2pl_hf.errors import InputError

LISTS = {
    "pascal/92/labeled.txt": "a\nb",
    "pascal/92/unlabeled.txt": "c\nd\ne",
    "cityscapes_ael/372/labeled.txt": "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png\n",
    "cityscapes_ael/372/unlabeled.txt": "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png\n",
}
PATH = "pascal/92/labeled.txt"
# UniMatch V2's, in its repository's folders: (split, list, an id of the data that it names, one that it does not).
OF_UNIMATCH = [
    ("ade20k/1_64", "images/training/ADE_train_00000002.jpg annotations/training/ADE_train_00000002.png",
     "ADE_train_00000002", "ADE_train_00000001"),
    ("coco/1_512", "train2017/000000000030.jpg masks/000000000030.png", "000000000030", "000000000009"),
    ("cityscapes_unimatch/1_30", "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png gtFine/train/ulm/ulm_0_1_gtFine.png",
     "ulm_0_1", "aachen_0_1"),
    ("voc_unimatch/92", "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png", "2007_000032", "2007_000033"),
]  # fmt: skip
FOLDERS = {"voc_unimatch/92": "pascal/92", "cityscapes_unimatch/1_30": "cityscapes/1_30"}


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


@pytest.fixture(params=OF_UNIMATCH, ids=lambda case: case[0])
def unimatch(request, tmp_path, monkeypatch):
    """A split of UniMatch V2, its list's file in a tree as published, an id that it names, and one that it does not."""
    split, text, *ids = request.param
    file = tmp_path / "unimatch" / FOLDERS.get(split, split) / "labeled.txt"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    monkeypatch.setitem(PINS, f"{SPLITS[split]}/labeled.txt", hashlib.sha256(text.encode()).hexdigest())
    return split, file, *ids


@pytest.fixture
def offline(monkeypatch):
    """No server listens there."""
    monkeypatch.setenv("U2PL_SPLITS_URL", "http://127.0.0.1:9")


def test_every_published_split_is_pinned():
    assert len(SPLITS) == 35 and len(PINS) == 2 * 14 + 21
    for folder in SPLITS.values():
        repository, *_ = ORIGINS[folder.partition("/")[0]]
        lists = ["labeled.txt"] if repository == UNIMATCH_V2 else ["labeled.txt", "unlabeled.txt"]
        assert [file for file in ("labeled.txt", "unlabeled.txt") if f"{folder}/{file}" in PINS] == lists
    assert all(len(digest) == 64 for digest in PINS.values()) and len(set(PINS.values())) == len(PINS)


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


def test_splits_of_unimatch(unimatch, mirror, tmp_path, monkeypatch):
    split, file, labelled, other = unimatch
    web = tmp_path / "web" / "LiheYoung" / "UniMatch-V2" / UNIMATCH_V2_COMMIT
    web.mkdir(parents=True)
    (web / "splits").symlink_to(tmp_path / "unimatch")
    assert resolve_split(split, [other, labelled], 0) == ([1], [0])
    cache = tmp_path / "cache" / "splits" / UNIMATCH_V2_COMMIT
    assert list(cache.rglob("*.txt")) == [cache / file.relative_to(tmp_path / "unimatch")]


def test_tree_of_unimatch(unimatch, tree, offline, tmp_path):
    split, file, labelled, other = unimatch
    for root in (file.parents[2], cloned(tmp_path, file.parents[2])):
        assert resolve_split(split, [other, labelled], 0, splits_dir=root) == ([1], [0])
    file.write_text("another list")
    with pytest.raises(InputError, match=r"labeled\.txt is not the published list .*; replace it, or leave"):
        resolve_split(split, [other, labelled], 0, splits_dir=file.parents[2])


def cloned(tmp_path, tree):
    """The tree as it lies in a clone of the repository."""
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "splits").symlink_to(tree)
    return tmp_path / "clone"


def test_trees_of_two_works_are_told_apart(tree, mirror, tmp_path, monkeypatch):
    # Both have pascal/92/labeled.txt: in the tree of the other work it is passed over, not called damaged.
    text = "2007_000032"
    monkeypatch.setitem(PINS, "pascal_unimatch/92/labeled.txt", hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(InputError, match=f"cannot fetch .*/UniMatch-V2/{UNIMATCH_V2_COMMIT}/splits/pascal/92/labeled"):
        resolve_split("voc_unimatch/92", ["a"], 0, splits_dir=tree)
    own = tree / "pascal_unimatch" / "92" / "labeled.txt"
    own.parent.mkdir(parents=True)
    own.write_text(text)
    assert fetch_list("pascal_unimatch/92/labeled.txt", splits_dir=tree) == own
    assert fetch_list(PATH, splits_dir=tree) == tree / PATH
