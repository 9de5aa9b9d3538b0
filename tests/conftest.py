"""Shared by all tests: small thread counts, so that results do not depend on the machine's size, and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.hub_server import TOKEN, HubServer
from u2pl_hf.data.demo import DemoSpec, demo_folder
from u2pl_hf.hub import push

torch.set_num_threads(1)


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: many tests wait for scripts that they have started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    # Scripts that ran in this process took all cores, and sums would be rounded otherwise.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logging_restored():
    """Scripts that run in this process may switch lines off for all that comes after."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The demo data set with few and small images."""
    return demo_folder(tmp_path_factory.mktemp("demo"), DemoSpec(train=24, validation=5, size=64))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of our own, where this process is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(push, "BACK_OFF", (0, 0, 0))
    with HubServer(tmp_path / "hub") as server:
        # huggingface_hub reads the environment when it is imported, so this process needs more than variables.
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template,
                            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():  # fmt: skip
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no_tokens"))
        yield server
