"""A moderation endpoint as a reviewer: scores for the prompt and, where the provider takes it, for the picture."""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.reviewers.openai_client import PolicyRefusal, Provider, check_length, picture_uri, sendable
from compliance.rulesets import REFUSED, Ruleset

# OpenAI's models read texts below 2,000 characters best. Pieces overlap, so that no phrase is cut in two everywhere.
_PIECE = 1900
_OVERLAP = 200

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Result(BaseModel):
    model_config = ConfigDict(strict=True)

    categories: dict[str, bool | None] = {}
    category_scores: dict[str, Score | None] | None = None
    category_applied_input_types: dict[str, list[str] | None] | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)

    results: list[_Result]


class Moderation:
    """Asks about the prompt and about the picture in two calls, for given both at once an endpoint gives one answer.

    The negative prompt is not sent: it names what the picture must not show.
    """

    name = "moderation"
    labels = None
    always = True

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        model: str = "omni-moderation-latest",
        timeout: float = 20.0,
        images: bool = True,
        categories: Mapping[str, str] | None = None,
    ) -> None:
        """Without `images` it says nothing about pictures. `categories` are more names of the provider's, with ours."""
        self._provider = Provider(self.name, base_url=base_url, api_key=api_key, model=model, timeout=timeout)
        self._images = images
        self._categories = {**shipped_categories(), **(categories or {})}
        told = json.dumps([images, self._categories], sort_keys=True)
        self.version = f"{model}+{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        check_length(self.name, context.positive)
        texts = list(pieces(sendable(context.positive)))
        prompt = self._scores("text", texts if len(texts) > 1 else texts[0], len(texts)) if texts else {}
        if not self._images:
            return Opinion(prompt=prompt)
        look = [{"type": "image_url", "image_url": {"url": picture_uri(picture.pixels)}}]
        return Opinion(prompt=prompt, picture=self._scores("image", look, 1))

    def _scores(self, medium: str, given: object, count: int) -> dict[str, float]:
        """Our labels with their highest scores over all results."""
        try:
            answer = self._provider.read(_Answer, self._provider.moderate(given))
        except PolicyRefusal:
            return {REFUSED: 1.0}
        if len(answer.results) != count:
            raise self._provider.nonsense(f"{len(answer.results)} results for {count}")
        scores: dict[str, float] = {}
        for result in answer.results:
            if not (of_result := dict(_of(result, medium))):
                raise self._provider.nonsense("a result without scores")
            for category, score in of_result.items():
                label = self._categories.get(category, category)
                scores[label] = max(score, scores.get(label, 0.0))
        return scores


def shipped_categories() -> dict[str, str]:
    """The provider's names that we know, with ours."""
    text = Path(__file__).with_name("moderation.toml").read_text(encoding="utf-8")
    return {name: label for table in tomllib.loads(text).values() for name, label in table.items()}


def _of(result: _Result, medium: str) -> Iterator[tuple[str, float]]:
    """Each category with its score, or with its flag where it has none. What the model did not look for is left out."""
    scores = result.category_scores or {}
    applied = result.category_applied_input_types or {}
    for category in sorted(scores.keys() | result.categories.keys()):
        score, flag = scores.get(category), result.categories.get(category)
        if score is None:
            score = None if flag is None else float(flag)
        # OpenAI gives a picture 0 in the categories that it only knows for texts: that is no opinion.
        unseen = score == 0 and category in applied and medium not in (applied[category] or ())
        if score is not None and not unseen:
            yield category, score


def pieces(text: str) -> Iterator[str]:
    """The text in parts that a model reads well; none for a text with nothing in it."""
    if not text.strip():
        return
    for start in range(0, max(1, len(text) - _OVERLAP), _PIECE - _OVERLAP):
        yield text[start : start + _PIECE]
