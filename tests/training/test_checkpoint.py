import dataclasses
import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from u2pl_hf.errors import InputError, TrainingError
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.run import checkpoint, run_folder
from u2pl_hf.training.run.checkpoint import damage, load_checkpoint, save_checkpoint, write_atomically
from u2pl_hf.training.run.endings import failures_in_one_line
from u2pl_hf.training.run.run_folder import RunFolder


def objects():
    student, method = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
    groups = [{"params": [student.weight], "factor": 1.0}, {"params": [student.bias], "factor": 10.0}]
    return student, method, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def train_one_step(student, method, optimizer):
    method(student(torch.ones(4, 2, 3, 3))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: RunFolder, step: int, parts, processes: int = 1, keep: int = 2, **data):
    state = {"step": step, "recipe": folder.args.recipe(), "processes": processes, "data": data, "best": None,
             "evaluation_is_due": False, "scaler": None, "skipped": [], "seconds": 1.0, "seconds_of": {}}  # fmt: skip
    save_checkpoint(folder.checkpoint_path(step), *parts, state, keep=keep)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run folder with checkpoints of steps 5 and 10."""
    folder = RunFolder(run_arguments(output_dir=str(tmp_path / "run")))
    folder.start(["b", "a"])
    parts = objects()
    train_one_step(*parts)
    for step in (5, 10):
        save(folder, step, parts)
    return folder


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir())


def test_checkpoint_round_trip(tmp_path):
    folder = RunFolder(run_arguments(output_dir=str(tmp_path / "run")))
    folder.start(["b", "a"])
    saved = objects()
    train_one_step(*saved)
    save(folder, 10, saved)

    loaded = objects()
    state = load_checkpoint(folder.checkpoint_to_resume({}, 1), *loaded)
    assert state["step"] == 10 and state["recipe"] == folder.args.recipe()
    train_one_step(*saved)
    train_one_step(*loaded)
    for ours, theirs in zip(saved[0].parameters(), loaded[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(saved[1].running_mean, loaded[1].running_mean)
    assert [g["factor"] for g in loaded[2].param_groups] == [1.0, 10.0]


def test_old_checkpoints_go_when_a_new_one_is_complete(run):
    save(run, 15, objects())
    assert names(run) == ["step-000010", "step-000015"]
    save(run, 20, objects(), keep=1)
    assert names(run) == ["step-000020"]
    save(run, 999_999, objects(), keep=1)
    save(run, 1_000_000, objects(), keep=1)
    assert names(run) == ["step-1000000"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("file", ["student", "method", "optimizer", "state", "manifest"])
@pytest.mark.parametrize("harm", [flip, truncate, lambda path: path.unlink()], ids=["flipped", "cut", "missing"])
def test_damaged_checkpoint_is_passed_over_and_named(run, caplog, harm, file):
    newest = run.checkpoint_path(10)
    harm(next(newest.glob(f"{file}.*")))
    assert run.checkpoint_to_resume({}, 1) == run.checkpoint_path(5)
    assert f"damaged checkpoint {newest}" in caplog.text
    asked = RunFolder(dataclasses.replace(run.args, resume=str(newest)))
    with pytest.raises(InputError, match=r"step-000010.*pass auto|not a checkpoint"):
        asked.checkpoint_to_resume({}, 1)


def test_half_written_checkpoint_is_no_checkpoint_and_is_cleared_away(run):
    half = run.path / "checkpoints" / ".step-000015.partial"
    shutil.copytree(run.checkpoint_path(10), half)
    assert run.checkpoint_to_resume({}, 1) == run.checkpoint_path(10)
    run.start(["b", "a"])
    assert names(run) == ["step-000005", "step-000010"]


def test_all_damaged_starts_at_the_beginning(run):
    for step in (5, 10):
        truncate(run.checkpoint_path(step) / "student.safetensors")
    assert run.checkpoint_to_resume({}, 1) is None


def test_checkpoint_of_other_data_is_refused(run):
    save(run, 20, objects(), **{"unlabelled images": "abc"})
    run.checkpoint_to_resume({"unlabelled images": "abc"}, 1)
    with pytest.raises(InputError, match="trained on other unlabelled images"):
        run.checkpoint_to_resume({"unlabelled images": "abd"}, 1)


def test_checkpoint_of_other_processes_is_refused_unless_asked_for(run):
    save(run, 20, objects(), processes=2)
    with pytest.raises(InputError, match="written by 2 processes and this run has 1"):
        run.checkpoint_to_resume({}, 1)
    changed = dataclasses.replace(run.args, change_processes=True)
    with pytest.raises(InputError, match=r"\(8, 8\) labelled and unlabelled images per step, this run \(4, 4\)"):
        RunFolder(changed).checkpoint_to_resume({}, 1)
    for same in ({"gradient_accumulation_steps": 2}, {"batch_size": 8, "unlabelled_batch_size": 8}):
        folder = RunFolder(dataclasses.replace(changed, **same))
        folder.check()
        assert folder.checkpoint_to_resume({}, 1) == run.checkpoint_path(20)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EFBIG, "File too large"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_full_disk_keeps_the_last_checkpoint_and_says_so(run, monkeypatch, error):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    expected = pytest.raises(TrainingError, match=r"no space left for .*checkpoint step-000010 is complete")
    with expected, failures_in_one_line(run.path):
        save(run, 15, objects())
    assert names(run) == ["step-000005", "step-000010"] and damage(run.checkpoint_path(10)) is None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")])
def test_what_does_not_fit_into_memory_is_one_line(tmp_path, error):
    expected = pytest.raises(
        TrainingError, match=r"halve .*--unlabelled_batch_size, .*--queue_length; there is no check"
    )
    with expected as told, failures_in_one_line(tmp_path):
        raise error
    assert "\n" not in str(told.value)


def test_folder_of_another_run_is_refused(tmp_path):
    args = run_arguments(output_dir=str(tmp_path / "run"))
    folder = RunFolder(args)
    folder.start([])
    folder.check()
    with pytest.raises(InputError, match="seed is 0 there and 1 here"):
        RunFolder(dataclasses.replace(args, seed=1)).check()
    with pytest.raises(InputError, match="not empty"):
        RunFolder(dataclasses.replace(args, resume="never")).check()
    # What does not change the result may change.
    RunFolder(dataclasses.replace(args, logging_steps=1, num_workers=0)).check()


def test_changed_list_of_labelled_images_is_refused(tmp_path):
    folder = RunFolder(run_arguments(output_dir=str(tmp_path / "run"), split="ids.txt"))
    folder.check_labelled_ids(["a"])
    folder.start(["a", "b"])
    folder.check_labelled_ids(["a", "b"])
    with pytest.raises(InputError, match=r"ids.txt has other images"):
        folder.check_labelled_ids(["a", "c"])


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        RunFolder(run_arguments(output_dir=str(tmp_path))).check()
    with pytest.raises(InputError, match="is a file"):
        RunFolder(run_arguments(output_dir=str(tmp_path / "thesis.tex"))).check()
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_resume_from_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a checkpoint"):
        RunFolder(run_arguments(output_dir=str(tmp_path), resume=str(tmp_path))).checkpoint_to_resume({}, 1)


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(run_arguments(output_dir=str(tmp_path)))
    lines = [{"step": 10}, {"step": 10, "eval_mean_iou": None}, {"step": 20}, {"step": 20, "eval_mean_iou": 0.5}]
    lines += [{"step": 30}, {"step": 30, "eval_mean_iou": 0.6}]
    folder.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    folder.trim_metrics(20)
    # The evaluation of the checkpoint's own step comes after it and is done again.
    assert [json.loads(line) for line in folder.metrics_path.read_text().splitlines()] == lines[:3]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda p: p.write_text("old"))

    def fail(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "old"


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("trained")
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "run", lambda p: p.write_text("scores"))
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "model"]


def test_second_run_in_a_folder_is_kept_out_while_the_first_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.0)
    first, second = (RunFolder(run_arguments(output_dir=str(tmp_path / "run"))) for _ in range(2))
    first.start(["a"])
    with pytest.raises(InputError, match="in use by a run that is still going on"):
        second.start(["a"])
    first.unlock()
    second.start(["a"])


@pytest.mark.parametrize("other", ["step-000001-backup", "step-999999 (copy)", "step-best"])
def test_what_is_no_checkpoint_stays_and_pushes_none_out(run, other):
    copy = shutil.copytree(run.checkpoint_path(5), run.checkpoint_path(5).with_name(other))
    save(run, 15, objects(), keep=1)
    assert names(run) == sorted(["step-000015", other]) and damage(copy) is None
    assert run.checkpoint_to_resume({}, 1) == run.checkpoint_path(15)


def test_a_checkpoint_before_others_is_not_pushed_out_by_them(run):
    """As where --resume has gone back."""
    save(run, 7, objects(), keep=1)
    assert names(run) == ["step-000007", "step-000010"]


def test_what_a_run_left_before_it_began_is_no_other_run(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fresh = RunFolder(run_arguments(output_dir=str(tmp_path / "fresh")))
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_text", full)
        with pytest.raises(InputError, match=r"cannot be written to \(No space left on device\); pass another folder"):
            fresh.start(["a"])
    fresh.unlock()
    (fresh.path / ".recipe.yaml.17.partial").write_text("outp")
    for resume in ("auto", "never"):
        again = RunFolder(dataclasses.replace(fresh.args, resume=resume))
        again.check()
    again.start(["a"])
    assert sorted(path.name for path in fresh.path.iterdir()) == [".lock", "labeled.txt", "recipe.yaml"]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".hidden").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        RunFolder(run_arguments(output_dir=str(tmp_path / "theirs"))).check()


@pytest.mark.parametrize("ids", [["a ", " b"], ["a\u2028b", "c\x85d"], ["a\x0cb"], ["Straße 1", "b"]])
def test_ids_of_any_kind_are_those_of_the_run(tmp_path, ids):
    folder = RunFolder(run_arguments(output_dir=str(tmp_path / "run")))
    folder.start(ids)
    folder.check_labelled_ids(ids)
    for others in ([*ids, "x"], [i.strip() + "." for i in ids]):
        with pytest.raises(InputError, match="other images"):
            folder.check_labelled_ids(others)


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', "\0\0\0\n", '{"step": 3, "loss": 0.1}\n{"st\n', '{"step": "3"}\n'])
def test_a_broken_end_of_the_metrics_is_cut_off(run, tail):
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "gamma": Infinity}']
    run.metrics_path.write_text("\n".join(lines) + "\n" + tail)
    run.trim_metrics(2)
    assert run.metrics_path.read_text().splitlines() == lines
    run.metrics_path.write_text("\n".join([lines[0], tail.strip(), lines[1]]) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line [23] is .*remove the line"):
        run.trim_metrics(2)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(run, umask, mode):
    before = os.umask(umask)
    try:
        save(run, 15, objects())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in run.checkpoint_path(15).iterdir()} == {mode}
