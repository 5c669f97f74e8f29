"""What is true of every model of one family: the one table of it. No torch in here.

A diffusers folder says in ``model_index.json`` which pipeline class it is for, and that class names its family. What a
family says is a default: ``models.toml`` may say otherwise for one model (a distilled SDXL draws in 4 steps without
guidance). A class that is not listed is drawn with too, by what its signature accepts, under the defaults of `OTHER`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The defaults of a family.

    ``guidance_argument`` is the pipeline's name for the strength of classifier-free guidance; where that is not
    ``guidance_scale``, the pipeline has a distilled guidance beside it. ``negative`` says whether negative prompts are
    heeded at a guidance above ``negative_above``, ``max_tokens`` what goes into ``max_sequence_length`` (None: the
    pipeline has none), ``templated`` that the words of a chat before the prompt count among those. ``edits`` says
    whether the text-to-image pipeline itself looks at reference pictures, as many as there are; ``from_text`` is the
    pipeline class that draws without references where the folder's own needs one.
    """

    name: str
    pipelines: tuple[str, ...]
    steps: int
    guidance: float
    negative: bool = True
    negative_above: float = 1.0
    guidance_argument: str = "guidance_scale"
    size_multiple: int = 16
    max_tokens: int | None = None
    templated: bool = False
    edits: bool = False
    from_text: str | None = None


OTHER = Family(name="other", pipelines=(), steps=30, guidance=5.0, size_multiple=32)

_TABLE = (
    Family(name="sd15", pipelines=("StableDiffusionPipeline",), steps=30, guidance=7.0, size_multiple=8),
    Family(name="sdxl", pipelines=("StableDiffusionXLPipeline",), steps=30, guidance=6.0, size_multiple=8),
    Family(name="sd3", pipelines=("StableDiffusion3Pipeline",), steps=28, guidance=4.5, max_tokens=256),
    # Guidance is distilled into it: a number that the transformer reads, with nothing to push away from.
    Family(name="flux", pipelines=("FluxPipeline",), steps=28, guidance=3.5, negative=False, max_tokens=512),
    Family(
        name="flux2",
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
        steps=28,
        guidance=4.0,
        negative=False,
        max_tokens=512,
        templated=True,
        edits=True,
    ),
    # Its guidance of g is what others call g + 1, so that any above 0 heeds negatives.
    Family(
        name="z-image",
        pipelines=("ZImagePipeline",),
        steps=28,
        guidance=4.0,
        negative_above=0.0,
        max_tokens=512,
        templated=True,
    ),
    Family(
        name="qwen-image",
        pipelines=("QwenImagePipeline",),
        steps=30,
        guidance=4.0,
        guidance_argument="true_cfg_scale",
        max_tokens=1024,
    ),
    Family(
        name="qwen-image-edit",
        pipelines=("QwenImageEditPlusPipeline",),
        steps=40,
        guidance=4.0,
        guidance_argument="true_cfg_scale",
        max_tokens=1024,
        edits=True,
        from_text="QwenImagePipeline",
    ),
)

FAMILIES = {family.name: family for family in (*_TABLE, OTHER)}
_BY_PIPELINE = {pipeline: family for family in _TABLE for pipeline in family.pipelines}


def family_of(pipeline: str) -> Family:
    """The family of a pipeline class by its name; `OTHER` for a class that came later."""
    return _BY_PIPELINE.get(pipeline, OTHER)
