"""The visible mark. It comes after the review and before the encoder, so that the types keep it in its place."""

from compliance.picture import Blocked, Marked, Reviewed


def mark(reviewed: Reviewed) -> Marked:
    """The picture with every visible mark asked for. None can be asked for yet, so the pixels pass unchanged."""
    return Marked(pixels=reviewed.pixels)


def mark_blocked(blocked: Blocked) -> Marked:
    """A blocked picture on its way to those who may see such pictures: it is signed too, whoever sees it.

    Raises ValueError for a verdict that is not releasable: such a picture is handed out in no form.
    """
    if not blocked.verdict.releasable:
        raise ValueError("a picture that is not releasable has no way out")
    return Marked(pixels=blocked.raw.pixels)
