"""The page, in Gradio: photograph in; overlay, classes and reliability out.

The network runs once for each photograph. Its result stays with the visitor's session, and the sliders only draw it
anew.
"""

import html
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# Read when Gradio is imported; the page is to work without any network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from u2pl_hf.app import markup
from u2pl_hf.app.explain import ALPHA_0, LONGEST_SIDE, Explanation, class_shares, explain, read_photo, split_reliable
from u2pl_hf.app.facts import card_scores, class_colours, class_names, describe_model, model_title
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.loading import load_model
from u2pl_hf.evaluation.pictures import colour_mask, entropy_map, overlay

try:
    import gradio as gr
except ImportError as error:
    raise InputError("the page needs Gradio: pip install 'u2pl_hf[app]'") from error

logger = logging.getLogger(__name__)
# Visitors' photographs and results: for how many seconds, and of how many visitors. One takes about 8 MB.
KEPT, MAX_VISITORS = 3600, 200
MAX_FILE_SIZE = "50mb"


class Page:
    """One model and how its predictions are drawn.

    Args:
        model: U2PLForSemanticSegmentation in eval mode.
        longest_side: larger images are shrunk to it.
    """

    def __init__(self, model, longest_side: int = LONGEST_SIDE):
        self.model, self.longest_side = model, longest_side
        self.names, self.colours = class_names(model.config), class_colours(model.config)

    def segment(self, photo: str | None, opacity: float, alpha: float) -> tuple:
        """Run the network on an image file: (Explanation, note, overlay, classes, legend, entropy, scale)."""
        if photo is None:
            return (None,) * 7
        start = time.perf_counter()
        try:
            found = explain(self.model, read_photo(photo), self.longest_side)
        except InputError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False, title="Cannot show this") from error
        logger.info("predicted %s in %.2f s", _size(found.image), time.perf_counter() - start)
        legend = markup.legend(class_shares(found.ids), self.names, self.colours)
        classes = colour_mask(found.ids, self.colours)
        drawn = (self.draw_overlay(found, opacity), classes, legend, *self.draw_entropy(found, alpha))
        return found, markup.note(self._size_note(found)), *drawn

    def draw_overlay(self, found: Explanation | None, opacity: float):
        """The image under its classes' colours."""
        return None if found is None else overlay(found.image, found.ids, self.colours, opacity)

    def draw_entropy(self, found: Explanation | None, alpha: float) -> tuple:
        """The entropy with the border of the unreliable pixels, and its scale."""
        if found is None:
            return None, None
        gamma, unreliable = split_reliable(found.entropy, alpha)
        # As wide on the screen for a large image as for a small one.
        width = max(1, round(max(found.entropy.shape) / 300))
        picture = entropy_map(found.entropy, gamma, num_labels=len(self.names), border_width=width)
        return picture, markup.entropy_scale(gamma, unreliable.mean(), len(self.names))

    def _size_note(self, found: Explanation) -> str:
        height, width = found.given_size
        if found.image.shape[:2] == found.given_size:
            return f"{width} x {height} pixels."
        return f"{width} x {height} pixels, shrunk to {_size(found.image)} before prediction."


def build_page(model, title: str, facts: Sequence[str] = (), examples: Sequence[str | Path] = (), **options):
    """The page of a loaded model as `gr.Blocks`; start it with `launch_page`.

    Args:
        model: U2PLForSemanticSegmentation in eval mode.
        title: heading.
        facts: lines below it.
        examples: image files to choose from.
        **options: of `Page`.
    """
    page = Page(model, **options)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.HTML(markup.title(title, facts), padding=False)
        found = gr.State(time_to_live=KEPT)
        with gr.Row():
            with gr.Column(min_width=300):
                # With a mode, Gradio would convert the file.
                photo = gr.Image(
                    label="Photograph",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    elem_classes="u2pl-picture",
                )
                # It would also open the file, and answer with its own error where it cannot.
                photo.preprocess = lambda payload: payload and payload.path
                size = gr.HTML(padding=False)
                if examples:
                    chosen = _add_examples([str(path) for path in examples], photo)
                legend = gr.HTML(padding=False)
            with gr.Column(min_width=300):
                over = _picture("Overlay", "jpeg")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the classes")
                classes = _picture("Predicted classes", "png")
            with gr.Column(min_width=300):
                entropy = _picture("Entropy", "png")
                alpha = gr.Slider(0, 1, ALPHA_0, step=0.01, label="Share of unreliable pixels (alpha)")
                scale = gr.HTML(padding=False)
        shown = [found, size, over, classes, legend, entropy, scale]

        def run_on(trigger, **options) -> None:
            done = trigger(page.segment, [photo, opacity, alpha], shown, show_progress_on=[over, entropy], **options)
            # Or the last photograph's pictures would stay beside one that was refused.
            done.failure(lambda: (None,) * len(shown), None, shown, api_visibility="private", show_progress="hidden")

        # `change` would fire twice where an upload replaces a photograph.
        run_on(partial(gr.on, [photo.upload, photo.clear]), api_name="segment", trigger_mode="always_last")
        if examples:
            run_on(chosen.then, api_visibility="private")
        redraw = {"show_progress": "hidden", "trigger_mode": "always_last"}
        opacity.input(page.draw_overlay, [found, opacity], over, api_name="overlay", **redraw)
        alpha.input(page.draw_entropy, [found, alpha], [entropy, scale], api_name="reliability", **redraw)
    return blocks


def _add_examples(files: list[str], photo):
    """Thumbnails to choose the photograph from; returns the event of a choice."""
    # These files, wherever they lie, may be shown; no others.
    gr.set_static_paths(files)
    # gr.Examples would replace the component, and `preprocess` with it.
    examples = gr.Dataset(components=[photo], samples=[[file] for file in files], type="index", label="Examples")
    return examples.click(files.__getitem__, examples, photo, api_visibility="private", show_progress="hidden")


def _picture(label: str, format: str):
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, format=format, interactive=False, buttons=buttons, elem_classes="u2pl-picture")


def _size(image) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def open_model(name: str, *, revision: str | None = None, device: str = "auto", title: str | None = None, **options):
    """`build_page` for a model by name: an exported folder or a Hub id, which is also the title where none is given.

    Raises:
        InputError: the model cannot be loaded.
    """
    model = load_model(name, device=device, revision=revision)
    facts = [describe_model(model), *card_scores(name, revision)]
    return build_page(model, title or model_title(name), facts, **options)


def launch_page(blocks, **options) -> str:
    """Serve the page from a thread of its own; returns its address. `options` are those of `gr.Blocks.launch`."""
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    own = {
        "quiet": True,
        "prevent_thread_lock": True,
        "ssr_mode": False,
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": MAX_VISITORS,
        "footer_links": ["api", "gradio"],
        "theme": theme,
        "css": markup.STYLE,
    }
    _, local, shared = blocks.launch(**own | options)
    return shared or local
