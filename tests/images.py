"""What a Dockerfile of ours would put into an image, without docker: its instructions, and the files that it copies."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Stage:
    """One FROM. ``copies`` are (sources, destination, from which stage), absolute in the image."""

    base: str
    name: str = ""
    workdir: str = "/"
    user: str = "root"
    copies: list[tuple[list[str], str, str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def read(path: Path, **build_args: str) -> list[Stage]:
    stages: list[Stage] = []
    for word, rest in instructions(path):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            parent = next((s for s in stages if s.name == base), None)
            stages.append(Stage(base=base, name=name, env=dict(parent.env) if parent else {}))
            continue
        stage = stages[-1]
        if word == "WORKDIR":
            stage.workdir = rest
        elif word == "USER":
            stage.user = rest
        elif word == "ARG":
            name, _, default = rest.partition("=")
            stage.args[name] = build_args.get(name, _filled(default.strip('"'), stage))
        elif word == "ENV":
            given = dict(pair.split("=", 1) for pair in shlex.split(rest))
            stage.env |= {name: _filled(value, stage) for name, value in given.items()}
        elif word == "RUN":
            stage.runs.append(rest)
        elif word == "COPY":
            words = rest.split()
            source = next((w.removeprefix("--from=") for w in words if w.startswith("--from=")), "")
            *sources, destination = [w for w in words if not w.startswith("--")]
            stage.copies.append((sources, str(PurePosixPath(stage.workdir, destination)), source))
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word == "HEALTHCHECK":
            stage.health = json.loads(rest.partition(" CMD ")[2])
    return stages


def _filled(value: str, stage: Stage) -> str:
    """``$name``, ``${name:-word}`` and ``${name:+word}``, as a Dockerfile has them."""

    def fill(found: re.Match[str]) -> str:
        name, sign, word = found["plain"] or found["name"], found["sign"], found["word"] or ""
        known = stage.args.get(name) or stage.env.get(name) or ""
        if sign == "+":
            return _filled(word, stage) if known else ""
        return known or _filled(word, stage)

    return re.sub(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::(?P<sign>[-+])(?P<word>[^}]*))?\})", fill, value)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps this path, relative to the repository, out of the context: the last match decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and not pattern.startswith("#") and _matches(pattern, path):
            verdict = not line.strip().startswith("!")
    return verdict


def _matches(pattern: str, path: str) -> bool:
    expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    parents = [str(each) for each in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
    return any(re.fullmatch(expression, each) for each in parents)


def build(stage: Stage, image: Path) -> Path:
    """Copies what the stage copies from the repository, and returns its working folder in the image."""
    for sources, destination, from_stage in stage.copies:
        for source in sources if not from_stage else []:
            target = image / destination.lstrip("/")
            if (ROOT / source).is_dir():
                _copy_folder(ROOT / source, target)
            else:
                target = target / Path(source).name if len(sources) > 1 or destination.endswith("/") else target
                target = target / Path(source).name if target.is_dir() else target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, target)
    return image / stage.workdir.lstrip("/")


def _copy_folder(source: Path, target: Path) -> None:
    for each in source.rglob("*"):
        if each.is_file() and not ignored(each.relative_to(ROOT).as_posix()):
            place = target / each.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(each, place)
