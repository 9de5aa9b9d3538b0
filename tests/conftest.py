"""Shared by all tests: small thread counts, so that results do not depend on the machine's size, and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from pathlib import Path

import pytest
import torch

from u2pl_hf.data.demo import DemoSpec, demo_folder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The demo data set with few and small images."""
    return demo_folder(tmp_path_factory.mktemp("demo"), DemoSpec(train=24, validation=5, size=64))
