"""The parts of the page that are HTML. All names come from models and files of others, and are escaped."""

import math
from collections.abc import Sequence
from html import escape

from u2pl_hf.evaluation.pictures import BORDER_COLOUR, ENTROPY_COLOURS

# Gradio's own variables, so that light and dark both fit.
STYLE = """
.u2pl-title h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .2rem; overflow-wrap: anywhere; }
.u2pl-picture :is(.image-frame, .upload-container) { width: 100% !important; }
.u2pl-picture img { width: 100%; max-height: 38rem; object-fit: contain; }
.u2pl-quiet { opacity: .75; margin: 0; }
.prose .u2pl-legend { width: 100%; margin: 0; border: 0; }
.prose .u2pl-legend :is(th, tr, td) { border: 0; padding: .2rem .3rem; vertical-align: middle; background: none; }
.prose .u2pl-legend th { text-align: left; font-weight: 600; }
.prose .u2pl-legend td:nth-child(1) { width: 1.6rem; }
.prose .u2pl-legend td:nth-child(2) { overflow-wrap: anywhere; }
.prose .u2pl-legend td:nth-child(3) { width: 35%; }
.prose .u2pl-legend td:nth-child(4) { width: 4.5rem; text-align: right; font-variant-numeric: tabular-nums; }
.u2pl-swatch { display: block; width: 1rem; height: 1rem; border-radius: 3px; border: 1px solid #8888; }
.u2pl-bar { display: block; height: .5rem; border-radius: 3px; background: currentColor; opacity: .3; min-width: 2px; }
.u2pl-scale { position: relative; height: .8rem; border-radius: 3px; margin: .3rem 0; }
.u2pl-scale i { position: absolute; top: -.2rem; bottom: -.2rem; width: 3px; margin-left: -1px; }
.u2pl-ends { display: flex; justify-content: space-between; opacity: .75; margin-bottom: .4rem; }
"""


def title(name: str, facts: Sequence[str]) -> str:
    """The model's name over its facts."""
    return f"<div class='u2pl-title'><h1>{escape(name)}</h1>{''.join(map(note, facts))}</div>"


def note(text: str) -> str:
    """A quiet line."""
    return f"<p class='u2pl-quiet'>{escape(text)}</p>"


def legend(shares: Sequence[tuple[int, float]], names: Sequence[str], colours: Sequence[Sequence[int]]) -> str:
    """A table with colour, name, bar and per cent of each class, in the order given; bars relate to the largest."""
    top = max((share for _, share in shares), default=1.0)
    rows = [
        f"<tr><td><span class='u2pl-swatch' style='background:{_rgb(colours[c])}'></span></td>"
        f"<td>{escape(names[c])}</td>"
        f"<td><span class='u2pl-bar' style='width:{100 * share / top:.1f}%'></span></td><td>{per_cent(share)}</td></tr>"
        for c, share in shares
    ]
    head = "<tr><th colspan='4'>Classes by share of the image</th></tr>"
    return f"<table class='u2pl-legend'>{head}{''.join(rows)}</table>"


def entropy_scale(gamma: float, unreliable: float, num_labels: int) -> str:
    """The colours from 0 to log C with gamma marked on them, and what share of the image lies above.

    Args:
        gamma: in nats.
        unreliable: share of the pixels, in [0, 1].
        num_labels: C.
    """
    end = math.log(num_labels)
    stops = ", ".join(_rgb(colour) for colour in ENTROPY_COLOURS.astype(int).tolist())
    place = 100 * gamma / end if end else 0
    return (
        f"<div class='u2pl-scale' style='background:linear-gradient(to right, {stops})'>"
        f"<i style='left:{place:.1f}%;background:{_rgb(BORDER_COLOUR)}'></i></div>"
        f"<div class='u2pl-ends'><span>0, certain</span><span>log {num_labels} = {end:.2f} nats</span></div>"
        f"<p>gamma = {gamma:.3g} nats; {per_cent(unreliable)} of the pixels lie at or above it: unreliable, inside the"
        " red line. The others would become pseudo-labels.</p>"
    )


def per_cent(share: float) -> str:
    """A share as HTML text; what is there but rounds to nothing says so."""
    return "&lt; 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _rgb(colour: Sequence[int]) -> str:
    return "rgb({}, {}, {})".format(*(int(value) for value in colour))
