import os
import pickle

import pytest

from tests.data.prepared import write_folder, write_tar, write_zip
from u2pl_hf.data.archives import list_members, unpack_streams
from u2pl_hf.errors import InputError

FILES = {"a/one.bin": b"1" * 700, "a/b/zwei ü 二.bin": b"22", "top.txt": b""}
HIDDEN = {"__MACOSX/a/one.bin": b"x", "a/.DS_Store": b"x"}


def contents(members):
    return {member.name: member.read() for member in members}


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_every_container_gives_the_same_members(tmp_path, kind):
    files = FILES | HIDDEN
    if kind == "folder":
        path = write_folder(tmp_path / "root", files)
    elif kind == "zip":
        path = write_zip(tmp_path / "named.dat", files)
    else:
        path = write_tar(tmp_path / "named.dat", files, kind)
    members = list_members(path)
    assert [member.name for member in members] == sorted(FILES)
    assert contents(pickle.loads(pickle.dumps(members))) == FILES
    assert {member.name: member.size for member in members} == {name: len(data) for name, data in FILES.items()}


def test_members_of_a_compressed_tar_are_unpacked_once_and_without_names(tmp_path):
    members = list_members(write_tar(tmp_path / "x.tgz", FILES, "w:gz"))
    work = tmp_path / "work"
    work.mkdir()
    moved = unpack_streams(members[:2], work)
    assert {old.name: new.read() for old, new in moved.items()} == {m.name: FILES[m.name] for m in members[:2]}
    assert sorted(path.name for path in work.iterdir()) == ["unpacked-0.bin", "unpacked-0.json"]
    (tmp_path / "x.tgz").unlink()
    assert unpack_streams(members[:2], work) == moved


def test_a_later_member_of_a_tar_replaces_an_earlier_one(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a": b"old", "b": b"b"})
    write_tar(path, {"a": b"new"}, "a")
    assert contents(list_members(path)) == {"a": b"new", "b": b"b"}


def test_links_between_folders_do_not_go_round(tmp_path):
    root = write_folder(tmp_path / "root", FILES)
    os.symlink(root, root / "a" / "again")
    assert contents(list_members(root)) == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    for path in (write_tar(tmp_path / "x.tar", {name: b"x"}), write_zip(tmp_path / "x.zip", {name: b"x"})):
        with pytest.raises(InputError, match="leads out"):
            list_members(path)


def test_what_is_no_archive_or_not_whole_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list_members(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="no archive: looked for tar"):
        list_members(tmp_path / "text")
    big = {f"{i}": os.urandom(5000) for i in range(9)}
    for mode in ("w", "w:gz"):
        path = write_tar(tmp_path / "cut", big, mode)
        path.write_bytes(path.read_bytes()[:30000])
        with pytest.raises(InputError, match="not complete"):
            list_members(path)
