import json
import subprocess
import sys

import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from u2pl_hf.errors import InputError
from u2pl_hf.hub.push import check_can_push, push_files, push_folder

ROWS = 40_000


@pytest.fixture
def folder(tmp_path):
    """A data set of two columns, in row groups, and its card."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 2**62, ROWS)
    table = pyarrow.table({"id": [f"im_{i}" for i in range(ROWS)], "value": noise})
    pyarrow.parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=4000)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nNoise.\n")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "notes").write_text("not for others")
    return folder


def client(hub, home, program):
    """What a program prints as JSON, run in a process of its own with this Hub as the only one."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=hub.environment(home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def push_dataset(folder, **options):
    return push_folder(folder, "user/noise", repo_type="dataset", **options)


def test_pushed_folder_is_there(hub, folder):
    url = push_dataset(folder, private=True)
    repo = hub.repos["dataset", "user/noise"]
    commit = repo.branches["main"]
    assert url == f"{hub.url}/datasets/user/noise/commit/{commit}" and repo.private
    files = repo.commits[commit]
    assert set(files) == {"README.md", "data/train-00000-of-00001.parquet"}
    for path, file in files.items():
        assert (hub.blobs / file.sha256).read_bytes() == (folder / path).read_bytes()
        assert file.lfs == path.endswith("parquet")
    # The same again is no new commit; a change is one.
    assert push_dataset(folder) == url
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert push_dataset(folder) != url and len(repo.commits) == 3


def test_push_to_a_branch(hub, folder):
    for _ in range(2):
        push_files({"README.md": folder / "README.md"}, "user/net", revision="step-10", commit_message="x", later="")
    repo = hub.repos["model", "user/net"]
    assert list(repo.commits[repo.branches["step-10"]]) == ["README.md"]
    assert repo.commits[repo.branches["main"]] == {} and not repo.private


def test_data_set_is_read_by_other_programs(hub, folder, tmp_path):
    push_dataset(folder)
    commit = hub.repos["dataset", "user/noise"].branches["main"]
    program = """
import json
from datasets import load_dataset
from huggingface_hub import hf_hub_download, snapshot_download
rows = load_dataset("user/noise", split="train")
stream = load_dataset("user/noise", split="train", streaming=True)
path = hf_hub_download("user/noise", "README.md", repo_type="dataset")
snapshot_download("user/noise", repo_type="dataset", revision=COMMIT)
print(json.dumps([len(rows), rows[7]["id"], [row["id"] for row in stream][150], open(path).read()]))
""".replace("COMMIT", repr(commit))
    read = client(hub, tmp_path / "home", program)
    assert read == [ROWS, "im_7", "im_150", (folder / "README.md").read_text()]


def test_reading_a_range_transfers_the_range(hub, folder, tmp_path):
    push_dataset(folder)
    commit = hub.repos["dataset", "user/noise"].branches["main"]
    program = f"""
import json, pyarrow.parquet
from huggingface_hub import HfFileSystem
path = "datasets/user/noise@{commit}/data/train-00000-of-00001.parquet"
with HfFileSystem().open(path, block_size=2**10, cache_type="none") as file:
    file.seek(500)
    part = file.read(1234)
    whole = pyarrow.parquet.ParquetFile(file)
    group = whole.read_row_group(3, columns=["id"])
print(json.dumps([part.hex(), group["id"][0].as_py()]))
"""
    part, first = client(hub, tmp_path / "home", program)
    content = (folder / "data" / "train-00000-of-00001.parquet").read_bytes()
    assert bytes.fromhex(part) == content[500:1734] and first == "im_12000"
    assert 1234 < hub.sent["user/noise"] < len(content) / 2
    hub.sent.clear()
    client(hub, tmp_path / "home", program.split("    whole")[0] + "print(len(part))")
    assert hub.sent["user/noise"] == 1234


def test_failures_of_the_server_are_outlived(hub, folder, caplog):
    hub.fail_next(2)
    check_can_push("user/noise", "dataset")
    hub.fail_next(2)
    url = push_dataset(folder)
    assert url.endswith(hub.repos["dataset", "user/noise"].branches["main"])
    assert sum("trying again" in m for m in caplog.messages) == 4


def test_lasting_failure_says_how_to_push_later(hub, folder):
    hub.fail_next(100)
    with pytest.raises(InputError, match=r"cannot push to user/noise: .*503.*told to fail; ") as error:
        push_dataset(folder, private=True, revision="v1")
    assert "\n" not in str(error.value) and len(hub.requests) == 4
    assert str(error.value).endswith(f"{folder} . --repo-type dataset --private --revision v1`")


def test_unreachable_hub(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot log in .*refused"):
        check_can_push("user/noise")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push_dataset(folder)


@pytest.mark.parametrize(
    "name",
    ["noise", "a/b/c", "user/", "us er/noise", "", "user/noise\n", "user\n/noise", "user/no\u2028ise", "user/n|se"],
)
def test_name_without_form(hub, name):
    with pytest.raises(InputError, match="USER/NAME"):
        check_can_push(name)
    assert not hub.requests


@pytest.mark.parametrize("token", [None, "hf_wrong_secret", "hf_wrong_\x01secret", "hf_wrong_secr\u00e9t"])
def test_missing_or_wrong_token_is_one_line(hub, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="token") as error:
        check_can_push("user/noise")
    assert "\n" not in str(error.value) and "wrong" not in str(error.value)


def test_a_folder_that_is_not_there(hub, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        push_folder(tmp_path / "nowhere", "user/noise")


def test_somebody_elses_name_is_warned_of(hub, caplog):
    check_can_push("user/net")
    assert not caplog.messages
    check_can_push("someone/net")
    assert "belongs to user, who may not be allowed to push to someone/net" in caplog.text


def test_addresses_in_messages_carry_no_signature(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("PUT https://store.example/lfs/ab12?X-Amz-Signature=secret failed")

    monkeypatch.setattr("u2pl_hf.hub.push.HfApi.create_commit", fail)
    with pytest.raises(InputError, match=r"https://store\.example/lfs/ab12 failed") as error:
        push_files({"a": b"1"}, "user/net", commit_message="x", later="nothing is lost")
    assert "secret" not in str(error.value) and str(error.value).endswith("; nothing is lost")


def test_files_of_one_commit(hub):
    push_files({"a/b": b"1", "c": b"2"}, "user/net", commit_message="x", later="")
    repo = hub.repos["model", "user/net"]
    push_files({"c": b"3"}, "user/net", commit_message="x", later="")
    assert set(repo.commits[repo.branches["main"]]) == {"a/b", "c"} and len(repo.commits) == 3
    push_files({"c": b"3"}, "user/net", commit_message="x", nothing_else=True, later="")
    assert set(repo.commits[repo.branches["main"]]) == {"c"}
    push_files({"c": b"3"}, "user/net", commit_message="x", nothing_else=True, later="")
    assert len(repo.commits) == 4
