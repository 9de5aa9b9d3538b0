import bz2
import gzip
import lzma
import os
import pickle
import tarfile

import pytest

from tests.data.prepared import write_folder, write_tar, write_zip
from u2pl_hf.data.prepare.archives import list_members, unpack_streams
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


def test_members_of_a_compressed_tar_are_unpacked_once(tmp_path):
    members = list_members(write_tar(tmp_path / "x.tgz", FILES, "w:gz"))
    work = tmp_path / "work"
    work.mkdir()
    moved = unpack_streams(members[:2], work)
    assert {old.name: new.read() for old, new in moved.items()} == {m.name: FILES[m.name] for m in members[:2]}
    assert sorted(path.name for path in work.iterdir()) == ["unpacked-0.tar"]
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
    (tmp_path / "zeros").write_bytes(bytes(20_000))
    with pytest.raises(InputError, match="zeros holds no files"):
        list_members(tmp_path / "zeros")
    big = {f"{i}": os.urandom(5000) for i in range(9)}
    for mode in ("w", "w:gz"):
        path = write_tar(tmp_path / "cut", big, mode)
        path.write_bytes(path.read_bytes()[:30000])
        with pytest.raises(InputError, match="not complete"):
            list_members(path)


MODES = ["w", "w:gz", "w:bz2", "w:xz"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [0, 512, 100_000, 700])
def test_tars_end_to_end_are_read_as_one(tmp_path, mode, padding):
    halves = [write_tar(tmp_path / f"{n}", {f"{n}.bin": os.urandom(700), f"{n}0.bin": b"x"}, mode) for n in (1, 2)]
    zeros = bytes(padding if mode == "w" else 0)
    (tmp_path / "both").write_bytes(
        halves[0].read_bytes() + zeros[: padding // 512 * 512] + halves[1].read_bytes() + zeros
    )
    members = list_members(tmp_path / "both")
    assert [member.name for member in members] == ["1.bin", "10.bin", "2.bin", "20.bin"]
    moved = unpack_streams(members, tmp_path)
    found = contents(moved.get(member, member) for member in members)
    assert list(found.values()) == [m.read() for half in halves for m in list_members(half)]
    assert contents(members) == {m.name: moved.get(m, m).read() for m in members}


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_header_is_not_the_end(tmp_path, mode):
    members = {f"{i}": bytes([i + 1]) * 512 for i in range(4)}
    plain = write_tar(tmp_path / "plain", members).read_bytes()
    opener = {"w": open, "w:gz": gzip.open, "w:bz2": bz2.open, "w:xz": lzma.open}[mode]
    for number, (content, message) in enumerate((
        (plain[:2048] + b"?" + plain[2049:], "bad checksum where a file"),  # the third member's header
        (plain[:2048] + bytes(512) + plain[2560:], "where a file"),  # zeros there, but its bytes follow
        (plain[: 4 * 1024], "empty header where"),  # cut between a member and the zeros behind the last
        (plain[:2048], "empty header where"),
        (plain[:2300], "truncated header where"),
        (plain[:2700], "unexpected end of data"),
        (plain + b"x" * 512, "invalid header"),
    )):  # fmt: skip
        with opener(tmp_path / f"{number}", "wb") as file:
            file.write(content)
        with pytest.raises(InputError, match=f"is damaged or not complete .*{message}"):
            list_members(tmp_path / f"{number}")


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_compressed_tar_that_is_cut_short(tmp_path, mode):
    whole = write_tar(tmp_path / "x", {f"{i}": os.urandom(5000) for i in range(9)}, mode).read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"not complete|is the download complete\?"):
            list_members(tmp_path / "cut")


def test_links_in_a_tar_are_told(tmp_path, caplog):
    root = write_folder(tmp_path / "root", {"a.bin": b"1"})
    os.symlink(root / "a.bin", root / "b.bin")
    os.link(root / "a.bin", root / "c.bin")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root, ".")
    assert len(list_members(tmp_path / "x.tar")) == 1
    assert "x.tar holds 2 links, such as " in caplog.messages[0]


def test_zips_that_are_not_one_whole_zip(tmp_path):
    one, two = (write_zip(tmp_path / f"{n}.zip", {f"{n}.bin": b"x" * 300}).read_bytes() for n in (1, 2))
    for content, message in (
        (one + two, "several zip files end to end"),
        (one[:-1], "no archive: looked for .*is the download complete"),
        (one[:200], "no archive"),
    ):
        (tmp_path / "x.zip").write_bytes(content)
        with pytest.raises(InputError, match=message):
            list_members(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(b"#!/bin/sh: a zip that unpacks itself" + one)
    assert contents(list_members(tmp_path / "x.zip")) == {"1.bin": b"x" * 300}
