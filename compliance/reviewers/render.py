"""Finds broken renders: the wrong size, or one colour all over. Those are errors, not verdicts."""

from typing import cast

from compliance.errors import BrokenRender
from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.rulesets import Ruleset

# A picture whose colours lie closer together than this (of 255) in every channel shows nothing.
_FLAT = 8


class RenderCheck:
    """Raises BrokenRender, or has nothing to say."""

    name = "render"
    version = "1"
    labels: frozenset[str] = frozenset()
    always = True

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        if context.width and picture.size != (context.width, context.height):
            width, height = picture.size
            raise BrokenRender(f"The picture has {width}x{height} pixels instead of {context.width}x{context.height}.")
        extrema = cast(tuple[tuple[int, int], ...], picture.pixels.getextrema())
        if all(high - low < _FLAT for low, high in extrema):
            raise BrokenRender("The picture shows a single colour.")
        return Opinion()
