"""The page as a Space: a folder with all that the Hub needs to run it.

README.md names Gradio's version, the licence and the model; requirements.txt the versions that ran where the folder was
made; app.py is `u2pl app` with its options. u2pl_hf/ is a copy of this package, examples/ holds images to choose from,
and model/ the model where it is a folder and not on the Hub.
"""

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData

from u2pl_hf.app.photos import model_title
from u2pl_hf.errors import refusing
from u2pl_hf.files import file_in
from u2pl_hf.markdown import escaped

# Spaces without a GPU would otherwise download gigabytes of CUDA.
CPU_TORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
APP = """import os

from u2pl_hf.commands.app import main

os.chdir(os.path.dirname(os.path.abspath(__file__)))
main({words!r})
"""


def write_space(
    folder: Path, model: str, revision: str | None, title: str | None, longest_side: int, examples: Sequence[Path]
) -> None:
    """Write the files of a Space into a new folder.

    Args:
        folder: where; made here.
        model: Hub id, or an exported folder, which is copied.
        revision: branch, tag or commit of a Hub model.
        title: heading of the page and the Space; by default the model's name.
        examples: image files to copy.
        longest_side: larger images are shrunk to it.

    Raises:
        InputError: a library that the Space needs is not installed here, so that its version is unknown.
    """
    # The number keeps the order, and two of one name apart.
    copies = {f"examples/{number:02d}_{example.name}": example for number, example in enumerate(examples)}
    on_hub, title = not Path(model).is_dir(), title or model_title(model)
    words = [model if on_hub else "model", "--title", title, "--longest_side", str(longest_side)]
    words += ["--model_revision", revision] if revision else []
    words += ["--examples", *copies] if copies else []
    with refusing(importlib.metadata.PackageNotFoundError, "a Space needs it", ": pip install 'u2pl_hf[app]'"):
        needed = [text for text in importlib.metadata.requires("u2pl_hf") if "extra ==" not in text]
        names = [re.match(r"[\w-]+", text)[0] for text in needed]
        # Without a build's suffix such as +cpu.
        versions = {name: importlib.metadata.version(name).partition("+")[0] for name in [*names, "gradio"]}
    # Gradio comes from the Hub, as README.md says.
    requirements = [CPU_TORCH, *(f"{name}=={versions[name]}" for name in names)]
    card = SpaceCardData(
        title=title,
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=versions["gradio"],
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[model] if on_hub else None,
        tags=["u2pl", "semantic-segmentation"],
    )
    shown = f"[{model}](https://huggingface.co/{model})" if on_hub else escaped(title)
    about = f"Segments photographs with {shown}, and shows which pixels it is unsure of."
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n\n{about}\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "app.py").write_text(APP.format(words=words), encoding="utf-8")
    if not on_hub:
        copies |= {f"model/{name}": path for name in MODEL_FILES if (path := file_in(Path(model), name))}
    for name, file in copies.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
