import dataclasses
import json

import pytest
import torch
from torch import nn

from u2pl_hf.errors import InputError
from u2pl_hf.training.arguments import RunArguments
from u2pl_hf.training.checkpoint import RunFolder, load_checkpoint, write_atomically


def objects():
    student, method = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
    groups = [{"params": [student.weight], "factor": 1.0}, {"params": [student.bias], "factor": 10.0}]
    return student, method, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def train_one_step(student, method, optimizer):
    method(student(torch.ones(4, 2, 3, 3))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_checkpoint_round_trip_and_rotation(tmp_path):
    folder = RunFolder(RunArguments(output_dir=str(tmp_path / "run")))
    folder.start(["b", "a"])
    saved = objects()
    train_one_step(*saved)
    folder.save_checkpoint(5, *saved, {"best": None})
    folder.save_checkpoint(10, *saved, {"best": {"mean_iou": 0.5}})
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000010"]

    loaded = objects()
    state = load_checkpoint(folder.checkpoint_to_resume(), *loaded)
    assert state["step"] == 10 and state["best"] == {"mean_iou": 0.5}
    train_one_step(*saved)
    train_one_step(*loaded)
    for ours, theirs in zip(saved[0].parameters(), loaded[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(saved[1].running_mean, loaded[1].running_mean)
    assert [g["factor"] for g in loaded[2].param_groups] == [1.0, 10.0]


def test_folder_of_another_run_is_refused(tmp_path):
    args = RunArguments(output_dir=str(tmp_path / "run"))
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
    folder = RunFolder(RunArguments(output_dir=str(tmp_path / "run"), split="ids.txt"))
    folder.check_labelled_ids(["a"])
    folder.start(["a", "b"])
    folder.check_labelled_ids(["a", "b"])
    with pytest.raises(InputError, match=r"ids.txt has other images"):
        folder.check_labelled_ids(["a", "c"])


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no run"):
        RunFolder(RunArguments(output_dir=str(tmp_path))).check()
    with pytest.raises(InputError, match="is a file"):
        RunFolder(RunArguments(output_dir=str(tmp_path / "thesis.tex"))).check()
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_resume_from_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a checkpoint"):
        RunFolder(RunArguments(output_dir=str(tmp_path), resume=str(tmp_path))).checkpoint_to_resume()


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(RunArguments(output_dir=str(tmp_path)))
    folder.metrics_path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (10, 20, 30)) + '{"step": 4')
    folder.trim_metrics(20)
    assert [json.loads(line)["step"] for line in folder.metrics_path.read_text().splitlines()] == [10, 20]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda p: p.write_text("old"))

    def fail(p):
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "old"
