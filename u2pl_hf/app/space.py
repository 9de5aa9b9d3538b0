"""The page as a Space: a folder with all that the Hub needs to run it.

README.md names Gradio's version, the licence and the model; requirements.txt the versions that ran where the folder was
made; settings.json what app.py shows. u2pl_hf/ is a copy of this package, examples/ holds images to choose from, and
model/ the model where it is a folder and not on the Hub.
"""

import importlib.metadata
import json
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import SpaceCardData

from u2pl_hf.app.photo import LONGEST_SIDE, model_title
from u2pl_hf.errors import InputError, exits_on_input_error
from u2pl_hf.files import file_in, read_json
from u2pl_hf.markdown import escaped

# What the page imports, directly or through this package. Gradio comes from the Hub, as README.md says.
REQUIREMENTS = ("torch", "transformers", "huggingface-hub", "evaluate", "datasets", "albumentations",
                "opencv-python-headless", "safetensors", "pillow", "numpy", "pyyaml", "tqdm")  # fmt: skip
# Spaces without a GPU would otherwise download gigabytes of CUDA.
CPU_TORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"
MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
APP = "from u2pl_hf.app.space import serve\n\nserve(__file__)\n"


def write_space(
    folder: Path,
    model: str,
    *,
    revision: str | None = None,
    title: str | None = None,
    examples: Sequence[Path] = (),
    longest_side: int = LONGEST_SIDE,
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
    on_hub = not Path(model).is_dir()
    title = title or model_title(model)
    requirements = [CPU_TORCH, *(f"{name}=={_version(name)}" for name in REQUIREMENTS)]
    card = SpaceCardData(
        title=title,
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=_version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[model] if on_hub else None,
        tags=["u2pl", "semantic-segmentation"],
    )
    shown = f"[{model}](https://huggingface.co/{model})" if on_hub else escaped(title)
    about = f"Segments photographs with {shown}, and shows which pixels it is unsure of."
    settings = {"model": model if on_hub else None, "revision": revision, "title": title, "longest_side": longest_side}
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n\n{about}\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "app.py").write_text(APP)
    # The number keeps the order, and two of one name apart.
    copies = {f"examples/{number:02d}_{example.name}": example for number, example in enumerate(examples)}
    if not on_hub:
        copies |= {f"model/{name}": file_in(Path(model), name) for name in MODEL_FILES}
    for name, file in copies.items():
        if file:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)


def _version(name: str) -> str:
    """Installed version of a library, without a build's suffix such as +cpu."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"a Space needs {name}, which is not installed here: pip install 'u2pl_hf[app]'") from error


@exits_on_input_error
def serve(app_file: str) -> None:
    """What app.py of a Space does: show the page until the process ends.

    Host and port are Gradio's defaults, or what GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, as on the Hub.
    """
    from u2pl_hf.app.page import launch_page, open_model

    here = Path(app_file).resolve().parent
    settings = read_json(here / "settings.json")
    model = settings.pop("model") or str(here / "model")
    examples = sorted((here / "examples").glob("*"))
    url = launch_page(open_model(model, examples=examples, **settings))
    print(json.dumps({"model": model, "url": url}), flush=True)
    threading.Event().wait()
