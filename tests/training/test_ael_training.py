"""U2PL with AEL in the trainer: resume, processes, streams, and what is refused."""

import json
from functools import partial

import pytest
import torch

from tests.data.rows import encode, make_table, write_parquet
from tests.training.distributed import on_two_processes
from tests.training.test_processes import assert_same_everywhere
from tests.training.test_trainer import make_trainer
from u2pl_hf.data.sources import load_source
from u2pl_hf.data.stream.pools import Reservoir
from u2pl_hf.errors import InputError
from u2pl_hf.training import batches

AEL = {"method": "u2pl_ael", "max_steps": 7, "warmup_steps": 2, "contrastive_start_steps": 4, "save_steps": 1,
       "keep_checkpoints": 9, "logging_steps": 1, "gradient_accumulation_steps": 2}  # fmt: skip


@pytest.fixture(scope="module")
def streamed_data(tiny_data, tmp_path_factory):
    """The tiny demo as parquet files."""
    folder = tmp_path_factory.mktemp("parquet")
    for subset in ("train", "validation"):
        source = load_source(str(tiny_data), subset)
        every = range(len(source.ids))
        images, labels = ([encode(read(i)) for i in every] for read in (source.read_image, source.read_label))
        write_parquet(folder, make_table(images, labels, source.ids), shards=2, group=3, subset=subset)
    (folder / "class_names.txt").write_text("\n".join(source.class_names))
    return folder


def lines_of(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole set", "reservoir"])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny_data, streamed_data, tmp_path, monkeypatch, streaming):
    """Stopped in warm-up, at its end, before and after the contrastive loss begins."""
    monkeypatch.setattr(batches, "Reservoir", partial(Reservoir, max_bytes=5 * 4 * 65 * 65))
    data, options = (streamed_data, AEL | {"streaming": True}) if streaming else (tiny_data, AEL)
    whole = make_trainer(data, tmp_path / "whole", **options)
    assert (
        isinstance(whole.run.method.partners.pool, Reservoir) == streaming
        and whole.run.method.partners.pool.size == (18, 5)[streaming]
    )
    results = whole.train()
    assert results["method"] == "u2pl_ael" and whole.run.method.categories.holds.any()
    for stop in (1, 2, 3, 5):
        folder = tmp_path / str(stop)
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{stop:06d}"
        rest = make_trainer(data, folder, resume=str(checkpoint), **options)
        assert rest.train()["last"] == results["last"]
        for name, value in whole.run.method.state_dict().items():
            assert torch.equal(value, rest.run.method.state_dict()[name]), name
        assert lines_of(folder) == lines_of(tmp_path / "whole")[stop:]


def test_what_it_logs(tiny_data, tmp_path):
    make_trainer(tiny_data, tmp_path / "run", watch_pseudo_labels=True, **AEL).train()
    lines = [line for line in lines_of(tmp_path / "run") if "loss" in line]
    assert all(0 <= line["pasted_share"] < 1 and len(line["confidence_per_class"]) == 7 for line in lines)
    known = [sum(line["confidence_per_class"]) for line in lines]
    assert known == sorted(known) and known[0] > 0
    assert ["loss_unsupervised" in line for line in lines] == [False] * 2 + [True] * 5
    assert ["loss_contrastive" in line for line in lines] == [False] * 4 + [True] * 3
    for line in lines[2:]:
        assert 0 < line["kept_share"] <= 1 and 0 <= line["component_share"] <= 1
        assert 0 <= line["accuracy_reliable"] <= 1


def _train_and_compare(data, folder, streaming: bool) -> None:
    trainer = make_trainer(data, folder / "run", **AEL | {"streaming": streaming})
    update, compared = trainer._update, []

    def update_and_compare(step):
        update(step)
        assert_same_everywhere([trainer.run.student, trainer.run.method])
        compared.append(
            (float(trainer.run.method.bank.confidence.sum()), int(trainer.run.method.categories.holds.sum()))
        )

    trainer._update = update_and_compare
    trainer.train()
    assert len(compared) == 7 and compared[0][0] > 0 and compared[1][1] == 0 < compared[2][1]
    # What is chosen for the next pass is each process's own.
    method = trainer.run.method
    for kind, chosen in {"donors": method.copy_paste.donors, "partners": method.partners.chosen}.items():
        (folder / f"{kind}{torch.distributed.get_rank()}").write_text(str(chosen.images.result()["pixel_values"].sum()))


@pytest.mark.parametrize("streaming", [False, True], ids=["whole set", "reservoir"])
def test_banks_are_equal_on_two_processes_and_choices_are_not(tiny_data, streamed_data, tmp_path, streaming):
    on_two_processes(_train_and_compare, streamed_data if streaming else tiny_data, tmp_path, streaming)
    for kind in ("donors", "partners"):
        assert (tmp_path / f"{kind}0").read_text() != (tmp_path / f"{kind}1").read_text()


def test_two_classes_one_image_of_each_kind_and_a_batch_of_one(tmp_path):
    for subset in ("train", "validation"):
        images = [encode((torch.rand(40, 40, 3) * 255).byte().numpy()) for _ in range(2)]
        labels = [encode((torch.rand(40, 40) * 2).byte().numpy()) for _ in range(2)]
        write_parquet(tmp_path / "set", make_table(images, labels), subset=subset)
    options = AEL | {"split": "1", "num_labels": 2, "batch_size": 1, "warmup_steps": 0, "max_steps": 5}
    trainer = make_trainer(tmp_path / "set", tmp_path / "run", **options)
    assert trainer.train()["last"]["mean_iou"] is not None
    assert all(line["pasted_share"] == 0 for line in lines_of(tmp_path / "run") if "loss" in line)


def test_rare_classes(tiny_data, tmp_path):
    """By default those with at most their share of the labelled pixels; or what the option leaves."""

    def rare(name, **options):
        trainer = make_trainer(tiny_data, tmp_path / name, **AEL | options)
        return trainer, tuple(trainer.run.method.copy_paste.rare.tolist())

    trainer, found = rare("default")
    total = trainer.run.data.labels.counts.sum(axis=0)
    assert found == tuple(c for c in range(7) if total[c] / total.sum() <= 1 / 7) and 0 < len(found) < 7
    assert rare("named", frequent_classes=["background", "3"])[1] == (1, 2, 4, 5, 6)
    # Two passes move the confidence bank as far as one of all images.
    assert trainer.run.method.bank.momentum**2 == pytest.approx(0.999)
    assert rare("all", frequent_classes=["none"])[1] == tuple(range(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequent_classes": ["lorry"]}, "--frequent_classes lorry is no class; there are background, "),
        ({"frequent_classes": list("0123456")}, "--frequent_classes names every class"),
        ({"variant": "official"}, "--variant official goes with --method u2pl"),
        ({"warmup_steps": 9}, "--warmup_steps 9 must be below max_steps 7"),
        ({"contrastive_start_steps": -1}, "--contrastive_start_steps -1 must not be negative"),
        ({"contrastive_start_steps": 7}, "--contrastive_start_steps 7 must be below max_steps 7; "),
        ({"contrastive_start_epochs": 2.0}, "--contrastive_start_epochs 2 are 10 steps of 7: pass another number"),
        ({"warmup_epochs": 9.0}, "--warmup_epochs 9 are 45 steps of 7: pass another number"),
        ({"low_rank": 9}, "leave no rank for negatives"),
        ({"split": "all"}, "leaves no unlabelled image"),
    ],
)
def test_wrong_input(tiny_data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tiny_data, tmp_path / "run", **AEL | options)
    assert not (tmp_path / "run").exists()


def test_donors_come_in_other_sizes_than_labelled_images(tiny_data, tmp_path):
    """From a tenth to twice the image: their crops are full or almost empty, those of the stream are never so empty."""
    trainer = make_trainer(tiny_data, tmp_path / "run", **AEL)
    rows = torch.arange(60) % 6

    def filled(pool) -> torch.Tensor:
        return pool.receive(pool.request(rows, torch.arange(60)))[2].float().mean(dim=(1, 2))

    donors, partners = filled(trainer.run.method.copy_paste.pool), filled(trainer.run.method.partners.pool)
    # Images of 64 pixels in crops of 65: the tenth fills 1 %, the half 24 %.
    assert 0.005 < donors.min() < 0.1 and donors.max() == 1
    assert 0.2 < partners.min() < 0.5 and partners.max() == 1


def test_a_damaged_unlabelled_image_is_named(tiny_data, tmp_path):
    trainer = make_trainer(tiny_data, tmp_path / "run", **AEL)
    bad = trainer.run.data.unlabelled_source.ids[trainer.run.data.unlabelled[0]]
    real = trainer.run.method.partners.pool.stream.source
    damaged = type(real)(DamagedRows(real.rows, {real.ids.index(bad)}), real.ids, real.classes)
    trainer.run.method.partners.pool.stream.source = damaged
    trainer.train()
    assert any(bad in message for message in trainer.run.batches.skipped)


class DamagedRows:
    """Rows of which some are no images."""

    def __init__(self, rows, damaged: set[int]):
        self.rows, self.damaged = rows, damaged

    def cell(self, index, role):
        return {"bytes": b"nothing", "path": None} if index in self.damaged else self.rows.cell(index, role)
