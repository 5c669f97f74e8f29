"""`Optimizing`: a prompt said better, with the caller's own names and negatives kept and nothing smuggled in.

A language model reads what callers write and may do what they say. Whatever it answers is therefore read as any
prompt is, and only the positive text of it is used: it can neither call a character nor leave anything out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from gateway.core import prompts
from gateway.core.ports import Optimizer

#: Characters of a prompt that the API takes, names and negatives among them.
WHOLE = 4000
#: Characters of enhanced text. A prompt that says more is left as it is.
MOST = 1500

#: What a model thought aloud; one that never came to an end has no answer after it.
_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```(?:[\w-]*+[ \t]*+\n)?(.*?)```", re.DOTALL)
#: What chatty models begin with: ``Prompt:``, ``**Enhanced prompt:**``, ``Sure! Here is your improved prompt:``.
_LABEL = re.compile(
    r"[*_#]{0,4}\s?(?:(?:sure|certainly|of course|okay|ok)\W{1,3})?(?:here(?:['’]s|\sis)\s)?(?:[a-z]+\s){0,3}prompt"
    r"[*_]{0,2}\s?:[*_]{0,2}\s?",
    re.IGNORECASE,
)
_PAIRS = (("**", "**"), ("__", "__"), *(tuple(pair) for pair in ('""', "''", "``", "“”", "‘’", "„“", "«»")))


class Optimizing:
    """Asks an optimizer and takes from its answer what may be taken."""

    def __init__(self, optimizer: Optimizer, *, most: int = MOST, whole: int = WHOLE) -> None:
        """``most``: characters of enhanced text; ``whole``: of the whole prompt as `prompts.render` gives it."""
        self._optimizer = optimizer
        self._most = most
        self._whole = whole

    @property
    def name(self) -> str:
        """Who enhances."""
        return self._optimizer.name

    async def optimize(
        self, parsed: prompts.Parsed, *, model_label: str, style_label: str, character_label: str
    ) -> prompts.Parsed:
        """The prompt with a better positive text, or ``parsed`` itself when there is none. Raises `EnhancementFailed`.

        A prompt of a character alone is enhanced too; one that has neither text nor character is left as it is.
        """
        room = min(self._most, self._whole - len(prompts.render(replace(parsed, positive=""))) - len(", "))
        if len(parsed.positive) >= room or not (parsed.positive or character_label):
            return parsed
        answer = await self._optimizer.enhance(
            parsed.positive, model=model_label, style=style_label, character=character_label
        )
        # Whatever it has of names and negatives is its own invention.
        text = _cut(prompts.parse(_bare(answer)).positive, room)
        text = _heeding(text, parsed.positive, parsed.negatives)
        return parsed if text in ("", parsed.positive) else replace(parsed, positive=text)


def _bare(answer: str) -> str:
    """The answer without thoughts, code fences, a label and quotes around it."""
    thoughts = _THOUGHTS.match(answer)
    text = answer[thoughts.end() :] if thoughts else answer
    if fenced := _FENCED.search(text):
        text = fenced[1]
    text, before = prompts.clean(text[: 4 * WHOLE]), ""
    while text != before:
        before = text
        if (label := _LABEL.match(text)) and label.end() < len(text):
            text = text[label.end() :]
        for opening, closing in _PAIRS:
            inside = text[len(opening) : -len(closing)]
            if text == f"{opening}{inside}{closing}" and opening not in inside and closing not in inside:
                text = inside.strip()
    return text


def _cut(text: str, most: int) -> str:
    """The text with at most so many characters: to the last comma or, where that is far from the end, the last word."""
    if len(text) <= most:
        return text
    head = text[: most + 1]
    comma = head.rfind(",")
    return head[: comma if comma > most // 2 else max(head.rfind(" "), 0)].rstrip(" ,")


def _heeding(text: str, own: str, negatives: Iterable[str]) -> str:
    """The text up to the first addition that says what the caller wants left out.

    What comes after it may build on it and goes too. Empty when the caller's own text is not there before it.
    """
    terms = "|".join(re.escape(term) for term in negatives)
    if not terms:
        return text
    unwanted = re.compile(rf"(?<!\w)(?:{terms})(?!\w)", re.IGNORECASE)
    segments, said = text.split(", "), set(own.split(", "))
    for at, segment in enumerate(segments):
        if segment not in said and unwanted.search(segment):
            before = ", ".join(segments[:at])
            return before if before.startswith(own) else ""
    return text
