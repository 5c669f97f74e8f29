"""``imgen rulesets``: look at the rulesets, check their files, and try what the words of a prompt do under them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from compliance.rules import PromptGate
    from compliance.rulesets import Ruleset
    from compliance.verdict import Verdict
    from gateway.settings import Settings

app = typer.Typer(help="Compliance rulesets: list them, check their files, try a prompt.", no_args_is_help=True)

Folder = Annotated[
    Path | None,
    typer.Option(
        help="Your own rulesets, beside the shipped ones; IMGEN_RULESETS.", file_okay=False, show_default=False
    ),
]


@app.command("check")
def check(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Your own rulesets, beside the shipped ones; IMGEN_RULESETS.", file_okay=False, show_default=False
        ),
    ] = None,
    option: Annotated[
        Path | None, typer.Option("--folder", help="The same.", file_okay=False, show_default=False)
    ] = None,
) -> None:
    """Read every ruleset file and say what to mend. Exit code 1 when there is something."""
    from compliance.errors import BadRules
    from compliance.rulesets import SHIPPED, load_ruleset, load_rulesets
    from gateway.console import say, table

    folders = _folders(folder or option)
    read: list[tuple[str, str, str, str]] = []
    problems: list[BadRules] = []
    labels = _gate().labels
    for path in (path for place in (SHIPPED, *folders) for path in sorted(place.glob("*.toml"))):
        try:
            ruleset = load_ruleset(path)
            _fit_the_words(ruleset, path, labels)
        except BadRules as exc:
            problems.append(exc)
        else:
            read.append((ruleset.name, ruleset.version, str(len(ruleset.rules)), str(path)))
    if not problems:
        try:
            load_rulesets(*folders)
        except BadRules as exc:
            problems.append(exc)
    if read:
        table(("NAME", "VERSION", "RULES", "FILE"), read)
    for problem in problems:
        say(f"imgen: {problem.message}")
        say(f"       {problem.fix}")
    raise typer.Exit(1 if problems else 0)


@app.command("list")
def show(folder: Folder = None) -> None:
    """List the rulesets with the reviewers that their rules name; one with a star is required."""
    from gateway.console import table

    table(
        ("NAME", "TITLE", "VERSION", "RULES", "REVIEWERS"),
        [
            (
                ruleset.name,
                ruleset.title,
                ruleset.version,
                str(len(ruleset.rules)),
                " ".join(f"{name}*" if name in ruleset.requires else name for name in sorted(ruleset.uses)),
            )
            for ruleset in _rulesets(folder).values()
        ],
    )


@app.command("test")
def try_prompt(
    prompt: Annotated[str, typer.Argument(help="What a caller asks for; -word takes something away, as ever.")],
    negative: Annotated[str, typer.Option(help="What should not be there.")] = "",
    ruleset: Annotated[str, typer.Option(help="One of: imgen rulesets list.")] = "default",
    tier: Annotated[str, typer.Option(help="The key's tier.")] = "standard",
    folder: Folder = None,
) -> None:
    """Say what the words of a prompt alone do under a ruleset. Exit code 1 when they refuse or block it."""
    from compliance.review import Context, decide
    from compliance.reviewers.words import Words
    from compliance.verdict import Asked
    from gateway.console import fail, table
    from gateway.core.prompts import parse

    known = _rulesets(folder)
    if (rules := known.get(ruleset)) is None:
        raise fail(f"There is no ruleset {ruleset!r}.", f"Use one of: {', '.join(known)}.")
    parsed = parse(prompt)
    without = ", ".join(text for text in (*parsed.negatives, negative) if text)
    words = Words(_gate())
    opinions = {words.name: words.read(Context(positive=parsed.positive, negative=without, tier=tier))}
    asked = [Asked(name=words.name, version=words.version)]
    gate = decide(opinions, asked, tier, rules.at_the_gate())
    review = decide(opinions, asked, tier, rules)
    table(("THE WORDS SAY",), [(label,) for label in opinions[words.name].prompt] or [("nothing",)])
    if review.reasons:
        typer.echo()
        table(
            ("RULE", "CATEGORY", "BECAUSE OF", "ACTION"),
            [(reason.rule, reason.category, reason.label, reason.action) for reason in review.reasons],
        )
    typer.echo()
    typer.echo(_outcome(gate, review, tier))
    raise typer.Exit(0 if gate.safe and review.safe else 1)


def _outcome(gate: Verdict, review: Verdict, tier: str) -> str:
    under = f"under {review.ruleset} ({review.ruleset_version}) for the tier {tier}"
    if not gate.safe:
        return f"refused before it is drawn, {under}: {', '.join(gate.categories)}"
    if not review.safe:
        return f"drawn, and blocked at the review, {under}: {', '.join(review.categories)}"
    return f"the words let it pass, {under}; the picture has its own review"


def _rulesets(folder: Path | None) -> dict[str, Ruleset]:
    from compliance.rulesets import load_rulesets

    return load_rulesets(*_folders(folder))


def _folders(folder: Path | None) -> tuple[Path, ...]:
    """The operator's folder, if there is one: the one that is given, or that of the settings."""
    from compliance.errors import BadRules

    folder = folder or _settings().rulesets
    if folder is not None and not folder.is_dir():
        raise BadRules(f"{folder}: there is no such folder of rulesets.", fix="Make it, or name another.")
    return () if folder is None else (folder,)


def _gate() -> PromptGate:
    """The word rules that a gateway with these settings reads prompts with."""
    from compliance.rules import PromptGate

    own = _settings().word_rules
    return PromptGate.from_file(own) if own else PromptGate.built_in()


def _settings() -> Settings:
    import os

    from gateway.settings import Settings

    return Settings.from_environ(os.environ)


def _fit_the_words(ruleset: Ruleset, path: Path, labels: frozenset[str]) -> None:
    """The labels of the words are the only ones that are known without a configured reviewer."""
    from compliance.errors import BadRules

    for rule in ruleset.rules:
        for label in sorted(rule.reviewers.get("text", {}).keys() - labels):
            lines = path.read_text(encoding="utf-8").splitlines()
            line = next((number for number, text in enumerate(lines, 1) if f'"{label}"' in text), 1)
            raise BadRules(
                f"{path}:{line}: rule {rule.id!r}: text never says {label!r}.",
                fix=f"It says: {', '.join(sorted(labels))}.",
            )
