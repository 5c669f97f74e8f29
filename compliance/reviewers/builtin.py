"""The check of the built-in model's world: which of its things a picture shows, whatever the prompt said."""

from pathlib import Path
from typing import Self

from PIL import Image

from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.reviewers.detector import Classifier
from compliance.rulesets import Ruleset

SHIPPED = Path(__file__).parents[1] / "builtin" / "check.toml"
#: One pixel of the model's art is a square of so many pixels in what leaves the worker.
SCALE = 16
# A smaller picture holds nothing, and the classifier needs room.
_LEAST = 16


class BuiltinCheck:
    """The reviewer `builtin`. It knows the built-in model's world only; of others it says nothing of worth."""

    name = "builtin"
    always = False

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @classmethod
    def shipped(cls) -> Self:
        """With the classifier that comes with imgen."""
        return cls(Classifier.from_file(SHIPPED))

    @property
    def version(self) -> str:
        return self._classifier.version

    @property
    def labels(self) -> frozenset[str]:
        return self._classifier.labels

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        width, height = (max(_LEAST, edge // SCALE) for edge in picture.size)
        art = picture.pixels.resize((width, height), Image.Resampling.BOX)
        return Opinion(picture=self._classifier.scores(art))
