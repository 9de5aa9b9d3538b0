"""Curves and pictures in real event files that are read back, and what a run does when a tracker does not work."""

import io
import json
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.training.test_trainer import make_trainer
from u2pl_hf.errors import InputError
from u2pl_hf.training.recipe.arguments import run_arguments
from u2pl_hf.training.run.tracking import Progress, _init_kwargs, curves, process_means


def read_events(run) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()


def read_lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def fail_at(trainer, step: int) -> None:
    """Make a run end with an exception at a step, counted from 0."""
    rate = trainer._set_learning_rate

    def fail(now: int) -> float:
        if now == step:
            raise RuntimeError("power cut")
        return rate(now)

    trainer._set_learning_rate = fail


@pytest.fixture(scope="module")
def tracked(tiny_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("tracked") / "run"
    make_trainer(tiny_data, run, max_steps=4, eval_steps=2, logging_steps=1, picture_samples=1).train()
    return run


def test_tensorboard_has_every_number_of_metrics(tracked):
    events, lines = read_events(tracked), read_lines(tracked)
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    names = list(json.loads((tracked / "results.json").read_text())["class_names"])
    expected = {(tag, line["step"]): value for line in lines for tag, value in curves(line, names).items()}
    assert found == pytest.approx(expected, rel=1e-6)
    assert {"loss", "learning_rate", "images_per_second", "eval_mean_iou"} <= set(events.Tags()["scalars"])
    assert {f"anchors_per_class/{name}" for name in names} <= set(events.Tags()["scalars"])
    iou = {name: value for name, value in lines[-1]["eval_per_class_iou"].items() if value is not None}
    assert {name: found[f"eval_iou/{name}", 4] for name in iou} == pytest.approx(iou, rel=1e-6)


def test_tensorboard_has_the_pictures_and_the_settings(tracked):
    events = read_events(tracked)
    (tag,) = events.Tags()["images"]
    assert [image.step for image in events.Images(tag)] == [2, 4]
    with Image.open(tracked / "pictures" / "step-000004.png") as grid:
        shown = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))
        assert np.array_equal(np.asarray(shown), np.asarray(grid))
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    settings = hparams.parse_session_start_info_plugin_data(content).hparams
    assert settings["method"].string_value == "u2pl" and settings["max_steps"].number_value == 4
    assert len(list((tracked / "tensorboard").iterdir())) == 1


def test_trackers_change_nothing_but_their_own_files(tiny_data, tracked, tmp_path):
    options = {"max_steps": 4, "eval_steps": 2, "logging_steps": 1, "picture_samples": 1, "trackers": ["none"]}
    make_trainer(tiny_data, tmp_path / "run", **options).train()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tracked / "model.safetensors").read_bytes()
    for line, other in zip(read_lines(tracked), read_lines(tmp_path / "run"), strict=True):
        assert line | {"images_per_second": 0} == other | {"images_per_second": 0}


def test_steps_that_are_done_again_replace_the_earlier_ones(tiny_data, tmp_path):
    options = {"max_steps": 6, "save_steps": 2, "logging_steps": 1}
    stopped = make_trainer(tiny_data, tmp_path / "run", **options)
    fail_at(stopped, 5)
    with pytest.raises(RuntimeError, match="power cut"):
        stopped.train()
    assert [event.step for event in read_events(tmp_path / "run").Scalars("loss")] == [1, 2, 3, 4, 5]
    time.sleep(1.1)  # event files are in the order of the seconds in which they began
    make_trainer(tiny_data, tmp_path / "run", **options).train()
    lines = [line for line in read_lines(tmp_path / "run") if "loss" in line]
    events = read_events(tmp_path / "run").Scalars("loss")
    assert [event.step for event in events] == [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wand"], "did you mean 'wandb'"),
        (["tensorflow-board-of-mine"], "no such tracker; "),
        (["excel"], "pass one of auto, none, "),
        (["auto", "wandb"], "wandb: it is not installed; pip install wandb"),
        (["tensorboard"], "tensorboard: it is not installed"),
        (["none", "tensorboard"], "none goes with no other name"),
    ],
)
def test_trackers_that_are_refused_before_data_are_read(tiny_data, tmp_path, monkeypatch, names, message):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("u2pl_hf.training.build.load_training_data", lambda args: pytest.fail("data were read"))
    with pytest.raises(InputError) as error:
        make_trainer(tiny_data, tmp_path / "run", trackers=names)
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()


class Recorder(GeneralTracker):
    """Keeps what it gets; takes no pictures."""

    name, requires_logging_directory, tracker = "recorder", False, None
    made: list["Recorder"] = []  # noqa: RUF012 (the test's way to what accelerate makes)

    def __init__(self, run_name: str):
        super().__init__()
        self.run_name, self.logged, self.finished = run_name, [], 0
        Recorder.made.append(self)

    def store_init_configuration(self, values: dict):
        self.settings = values

    def log(self, values: dict, step: int | None = None):
        self.logged.append(step)

    def finish(self):
        self.finished += 1


class ServerGone(Recorder):
    """Fails at a step, and takes pictures."""

    name = "server_gone"

    def log(self, values: dict, step: int | None = None):
        super().log(values, step)
        if step == 2:
            raise ConnectionError("the server\nis gone")

    def log_images(self, values: dict, step: int | None = None):
        pytest.fail("got more after its failure")


class NoLogin(Recorder):
    name = "no_login"

    def start(self):
        raise PermissionError("log in first")


class BadEnd(Recorder):
    name = "bad_end"

    def finish(self):
        super().finish()
        raise OSError("cannot end")


@pytest.fixture
def registered(monkeypatch):
    for kind in (Recorder, ServerGone, NoLogin, BadEnd):
        monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, kind.name, kind)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_a_tracker_that_fails_does_not_end_the_run(tiny_data, tmp_path, registered, caplog):
    trackers = ["server_gone", "bad_end", "recorder"]
    options = {"max_steps": 4, "logging_steps": 1, "picture_samples": 1, "trackers": trackers}
    assert make_trainer(tiny_data, tmp_path / "run", **options).train()["last"]["step"] == 4
    gone, bad_end, recorder = registered
    assert gone.logged == [1, 2] and gone.finished == 0
    assert recorder.logged == bad_end.logged == [1, 2, 3, 4, 4] and recorder.finished == bad_end.finished == 1
    assert caplog.text.count("tracker server_gone gets no more: the server is gone") == 1
    assert caplog.text.count("tracker bad_end gets no more") == 1
    assert recorder.run_name == "u2pl_hf" and recorder.settings["aspp_dilations"] == "1, 2, 3"
    assert all(isinstance(value, str | int | float) for value in recorder.settings.values())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_only_tensorboard(tiny_data, tmp_path, caplog, monkeypatch):
    write, written = RecordWriter.write, []

    def full(self, data):
        written.append(data)
        if len(written) > 60:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    make_trainer(tiny_data, tmp_path / "run", max_steps=6, logging_steps=1).train()
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 6]
    assert caplog.text.count("tracker tensorboard gets no more: [Errno 28] No space left on device") == 1


def test_trackers_end_with_a_run_that_fails(tiny_data, tmp_path, registered):
    trainer = make_trainer(tiny_data, tmp_path / "run", trackers=["recorder"])
    fail_at(trainer, 1)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
    assert registered[0].finished == 1


def test_a_tracker_that_cannot_start_is_told_in_one_line(tiny_data, tmp_path, registered):
    with pytest.raises(InputError, match=r"--trackers no_login \(log in first\); mend it or pass --trackers none"):
        make_trainer(tiny_data, tmp_path / "run", trackers=["no_login"]).train()


def test_without_tensorboard_a_run_is_told_how_to_get_it(tiny_data, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "u2pl_hf")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    make_trainer(tiny_data, tmp_path / "run", trackers=["auto"], max_steps=2, logging_steps=1, method="suponly").train()
    assert caplog.text.count("pip install u2pl_hf[tensorboard]") == 1
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [1, 2, 2]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_wandb_goes_on_with_the_run_of_the_folder(tmp_path):
    args = run_arguments(output_dir=str(tmp_path / "u2pl seed 0"), trackers=["wandb"])
    (tmp_path / "u2pl seed 0").mkdir()
    first, resumed, again = (_init_kwargs(args, step)["wandb"] for step in (0, 20, 0))
    assert first == resumed and first["resume"] == "allow" and first["name"] == "u2pl seed 0"
    assert first["id"] != again["id"] and re.fullmatch("[0-9a-f]{32}", first["id"])


def test_curves_leave_out_what_is_no_number():
    line = {"step": 3, "loss": 0.5, "gamma": None, "anchors_per_class": [1.0, None], "eval_absent_classes": ["sea"],
            "eval_per_class_iou": {"sky": 0.25, "sea": None}}  # fmt: skip
    assert curves(line, ["sky", "sea"]) == {"loss": 0.5, "anchors_per_class/sky": 1.0, "eval_iou/sky": 0.25}


def test_numbers_are_means_over_two_processes():
    """Each with what the other adds up; one collective for all of it."""
    nan, told = float("nan"), []
    processes = [
        {
            "loss": torch.tensor([1.0, 3.0][rank]),
            "alpha": 0.2,
            "anchors_per_class": torch.tensor([[2, 0, 5], [4, 0, 6]][rank]),
            "accuracy": torch.tensor([[nan, 0.5, nan], [0.25, 1.0, nan]][rank]),
            "gamma": torch.tensor(nan),
        }
        for rank in range(2)
    ]
    for values in processes:
        process_means(values, SimpleNamespace(reduce=lambda own, reduction: told.append(own) or own))
    assert len(told) == 2
    expected = {"loss": 2.0, "alpha": 0.2, "anchors_per_class": [3.0, 0.0, 5.5], "accuracy": [0.25, 0.75, None],
                "gamma": None}  # fmt: skip
    for values in processes:
        assert process_means(values, SimpleNamespace(reduce=lambda own, reduction: sum(told))) == expected


def test_images_per_second_are_those_of_training(tiny_data, tmp_path, monkeypatch):
    """An evaluation between two lines begins the count anew; a warm-up step has labelled images alone."""
    trainer = make_trainer(tiny_data, tmp_path / "run", trackers=["none"], logging_steps=4, warmup_steps=2)
    assert [trainer._images(step) for step in (1, 2)] == [2, 4]
    trainer.run.folder.mkdir()
    now = [0.0]
    monkeypatch.setattr("u2pl_hf.training.run.tracking.time.perf_counter", lambda: now[0])
    with Progress(trainer.run, 0) as tracker:
        for step, images, seconds in ((1, 6, 1.0), (2, 6, 1.0), (3, 10, 2.0), (4, 10, 2.0)):
            now[0] += seconds
            tracker.step(step, {"loss": torch.tensor(1.0)}, 0.1, images)
            if step == 2:
                now[0] += 100.0
                tracker.evaluation(step, {"step": step, "mean_iou": None})
    assert read_lines(tmp_path / "run")[-1]["images_per_second"] == 20 / 4
