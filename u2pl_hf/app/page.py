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

from u2pl_hf.app import markup, photos
from u2pl_hf.errors import InputError
from u2pl_hf.evaluation.inference import Prediction, predict
from u2pl_hf.evaluation.pictures import colour_mask, entropy_map

try:
    import gradio as gr
except ImportError as error:
    raise InputError("the page needs Gradio: pip install 'u2pl_hf[app]'") from error

logger = logging.getLogger(__name__)
# Visitors' photographs and results: for how many seconds, and of how many visitors. One takes about 8 MB.
KEPT, MAX_VISITORS = 3600, 200
# The paper's share of unreliable pixels at the start of training; it falls to 0.
ALPHA_0 = 0.2


class Page:
    """One model and how its predictions are drawn.

    Args:
        model: U2PLForSemanticSegmentation in eval mode.
        longest_side: larger images are shrunk to it.
    """

    def __init__(self, model, longest_side: int = photos.LONGEST_SIDE):
        self.model, self.longest_side = model, longest_side

    def segment(self, photo: str | None, opacity: float, alpha: float) -> tuple:
        """Run the network on an image file: (Prediction, note, overlay, classes, legend, entropy, scale)."""
        if photo is None:
            return (None,) * 7
        start = time.perf_counter()
        try:
            image = photos.read_photo(photo)
            found = predict(self.model, photos.shrink(image, self.longest_side), mode="whole")
        except InputError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False, title="Cannot show this") from error
        logger.info("predicted %s in %.2f s", _size(found.image), time.perf_counter() - start)
        is_small = found.image.shape == image.shape
        note = f"{_size(image)} pixels{'' if is_small else f', shrunk to {_size(found.image)} before prediction'}."
        legend = markup.legend(photos.class_shares(found.labels), found.class_names, found.palette)
        classes = colour_mask(found.labels, found.palette)
        drawn = (self.draw_overlay(found, opacity), classes, legend, *self.draw_entropy(found, alpha))
        return found, markup.note(note), *drawn

    def draw_overlay(self, found: Prediction | None, opacity: float):
        """The image under its classes' colours."""
        return found and found.overlay(opacity, contour=False)

    def draw_entropy(self, found: Prediction | None, alpha: float) -> tuple:
        """The entropy with the border of the unreliable pixels, and its scale."""
        if found is None:
            return None, None
        gamma, unreliable = photos.split_reliable(found.entropy, alpha)
        # As wide on the screen for a large image as for a small one.
        num_labels, width = len(found.class_names), max(1, round(max(found.entropy.shape) / 300))
        drawn = entropy_map(found.entropy, gamma, num_labels=num_labels, border_width=width)
        return drawn, markup.entropy_scale(gamma, unreliable.mean(), num_labels)


def build_page(model, title: str, facts: Sequence[str], examples: Sequence[Path], longest_side: int):
    """The page of a loaded model as `gr.Blocks`; start it with `launch_page`.

    Args:
        model: U2PLForSemanticSegmentation in eval mode.
        title: heading.
        facts: lines below it.
        examples: image files to choose from.
        longest_side: larger images are shrunk to it.
    """
    page, files = Page(model, longest_side), [str(path) for path in examples]
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.HTML(markup.title(title, facts), padding=False)
        found = gr.State(time_to_live=KEPT)
        with gr.Row():
            with gr.Column(min_width=300):
                # With a mode, Gradio would convert the file.
                upload = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
                picture = gr.Image(label="Photograph", elem_classes="u2pl-picture", **upload)
                # It would also open the file, and answer with its own error where it cannot.
                picture.preprocess = lambda payload: payload and payload.path
                size = gr.HTML(padding=False)
                if files:
                    # These files, wherever they lie, may be shown; no others.
                    gr.set_static_paths(files)
                    # gr.Examples would replace the component, and `preprocess` with it.
                    samples = {"samples": [[file] for file in files], "type": "index"}
                    thumbnails = gr.Dataset(components=[picture], **samples, label="Examples")
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
        hidden = {"api_visibility": "private", "show_progress": "hidden"}

        def run_on(trigger, **options) -> None:
            done = trigger(page.segment, [picture, opacity, alpha], shown, show_progress_on=[over, entropy], **options)
            # Or the last photograph's pictures would stay beside one that was refused.
            done.failure(lambda: (None,) * len(shown), None, shown, **hidden)

        # `change` would fire twice where an upload replaces a photograph.
        run_on(partial(gr.on, [picture.upload, picture.clear]), api_name="segment", trigger_mode="always_last")
        if files:
            chosen = thumbnails.click(files.__getitem__, thumbnails, picture, **hidden)
            run_on(chosen.then, api_visibility="private")
        redraw = {"show_progress": "hidden", "trigger_mode": "always_last"}
        opacity.input(page.draw_overlay, [found, opacity], over, api_name="overlay", **redraw)
        alpha.input(page.draw_entropy, [found, alpha], [entropy, scale], api_name="reliability", **redraw)
    return blocks


def _picture(label: str, format: str):
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, format=format, interactive=False, buttons=buttons, elem_classes="u2pl-picture")


def _size(image) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def launch_page(blocks, **options) -> str:
    """Serve the page from a thread of its own; returns its address. `options` are those of `gr.Blocks.launch`."""
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    limits = {"max_file_size": "50mb", "state_session_capacity": MAX_VISITORS}
    look = {"theme": theme, "css": markup.STYLE, "footer_links": ["api", "gradio"], "ssr_mode": False}
    _, local, shared = blocks.launch(quiet=True, prevent_thread_lock=True, **limits, **look, **options)
    return shared or local
