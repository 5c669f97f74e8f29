"""``imgen rulesets`` as an operator meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from compliance.rules import PromptGate
from compliance.rulesets import SHIPPED, load_rulesets
from gateway.cli import app
from tests.desk.stage import ROOT

HOUSE = """
name = "house"
title = "House rules"
requires = ["judge"]

[[rules]]
id = "nudity"
category = "ADULT_NSFW"
name = "Nudity"
refuse_prompt = true
except_tiers = ["pro"]
[rules.reviewers]
text = ["adult.explicit"]
judge = 0.6
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "rulesets"
    place.mkdir()
    (place / "house.toml").write_text(HOUSE, encoding="utf-8")
    return place


def rulesets(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["rulesets", *map(str, arguments)])


def line_of(output: str, start: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(start))


@pytest.mark.parametrize("command", [[], ["check"], ["list"], ["test"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    done = rulesets(*command, "--help")
    assert done.exit_code == 0
    assert "ulesets" in done.stdout


def test_the_real_command_line_has_it() -> None:
    command = [sys.executable, "-m", "gateway", "rulesets", "test", "nude child"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "minors.prompt" in done.stdout
    assert done.stderr == ""


# check


def test_the_shipped_rulesets_are_in_order() -> None:
    done = rulesets("check")
    assert done.exit_code == 0
    shipped = load_rulesets()
    for name, ruleset in shipped.items():
        assert line_of(done.stdout, f"{name} ").split()[:3] == [name, ruleset.version, str(len(ruleset.rules))]
    assert len(done.stdout.splitlines()) == 1 + len(list(SHIPPED.glob("*.toml")))


@pytest.mark.parametrize("way", [[], ["--folder"]], ids=["argument", "option"])
def test_an_operators_files_are_read_with_them(folder: Path, way: list[str]) -> None:
    done = rulesets("check", *way, folder)
    assert done.exit_code == 0
    assert line_of(done.stdout, "house ").endswith(str(folder / "house.toml"))
    assert line_of(done.stdout, "default ")


@pytest.mark.parametrize(
    ("change", "line", "says", "fix"),
    [
        (("judge = 0.6", "judge = 7"), 14, "less than or equal to 1", "default.toml"),
        (("judge = 0.6", "jugde = 0.6"), 6, "no reviewer 'jugde'", "default.toml"),
        (('"adult.explicit"', '"adult.explict"'), 13, "text never says 'adult.explict'", "adult.explicit"),
        (('category = "ADULT_NSFW"', 'category = "MINORS"'), 6, "about minors", "always on"),
        (('"judge"]', '"jury"]'), 4, "'jury', which is no reviewer", "judge"),
    ],
    ids=["number", "reviewer", "label", "minors", "requires"],
)
def test_every_mistake_is_a_line_of_a_file_and_its_fix(
    folder: Path, change: tuple[str, str], line: int, says: str, fix: str
) -> None:
    assert change[0] in HOUSE
    (folder / "house.toml").write_text(HOUSE.replace(*change), encoding="utf-8")
    (folder / "other.toml").write_text(
        HOUSE.replace("house", "other").replace('"judge"]', '"court"]'), encoding="utf-8"
    )
    done = rulesets("check", folder)
    assert done.exit_code == 1
    problems = done.stderr.splitlines()
    assert len(problems) == 4, "both files are told of, in a line and its fix"
    assert problems[0].startswith(f"imgen: {folder / 'house.toml'}:{line}: ")
    assert says in problems[0]
    assert fix in problems[1]
    assert "other.toml:4: " in problems[2]
    assert line_of(done.stdout, "default "), "the files that read are listed all the same"


def test_two_files_of_one_name_are_told_of(folder: Path) -> None:
    (folder / "again.toml").write_text(HOUSE, encoding="utf-8")
    done = rulesets("check", folder)
    assert done.exit_code == 1
    assert "is called 'house' too" in done.stderr


@pytest.mark.parametrize("arguments", [("check", "{0}"), ("list", "--folder", "{0}"), ("test", "x", "--folder", "{0}")])
def test_a_folder_that_is_not_there_is_one_sentence_and_its_fix(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    missing = str(tmp_path / "none")
    done = rulesets(*(argument.format(missing) for argument in arguments))
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"imgen: {missing}: there is no such folder of rulesets.",
        "       Make it, or name another.",
    ]


# list


def test_the_list_says_which_reviewers_each_uses_and_requires(folder: Path) -> None:
    done = rulesets("list", "--folder", folder)
    assert done.exit_code == 0
    house = line_of(done.stdout, "house ")
    assert "House rules" in house
    assert "judge*" in house.split() and "text" in house.split()
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == {*load_rulesets(), "house"}


# test


def test_a_harmless_prompt_passes() -> None:
    done = rulesets("test", "kidney beans, a girl with a kite")
    assert done.exit_code == 0
    assert "nothing" in done.stdout
    assert "the words let it pass, under default" in done.stdout


@pytest.mark.parametrize("ruleset", load_rulesets())
def test_minors_are_refused_at_submit_whatever_the_ruleset_and_tier(ruleset: str) -> None:
    done = rulesets("test", "n.u.d.e chi1d", "--ruleset", ruleset, "--tier", "pro")
    assert done.exit_code == 1
    assert "refused before it is drawn" in done.stdout
    assert line_of(done.stdout, "minors.prompt ").split() == ["minors.prompt", "MINORS", "MINORS", "block"]


def test_what_waits_for_the_review_is_blocked_there(folder: Path) -> None:
    done = rulesets("test", "a nude woman")
    assert done.exit_code == 1
    assert "drawn, and blocked at the review, under default" in done.stdout
    assert line_of(done.stdout, "adult.explicit ").endswith("block")
    early = rulesets("test", "a nude woman", "--ruleset", "house", "--folder", folder)
    assert early.exit_code == 1
    assert "refused before it is drawn, under house" in early.stdout


def test_a_tier_may_be_excepted() -> None:
    done = rulesets("test", "a nude woman", "--tier", "pro")
    assert done.exit_code == 0
    assert line_of(done.stdout, "adult.explicit ").endswith("flag")


def test_what_is_taken_away_is_no_request() -> None:
    assert rulesets("test", "portrait of a woman, -nude, -child").exit_code == 0
    assert rulesets("test", "portrait of a woman", "--negative", "nude, child").exit_code == 0
    assert rulesets("test", "nude woman", "--negative", "adult", "--tier", "pro").exit_code == 1


def test_an_unknown_ruleset_is_one_sentence_and_its_fix() -> None:
    done = rulesets("test", "a hill", "--ruleset", "lax")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "imgen: There is no ruleset 'lax'."
    assert "default" in done.stderr.splitlines()[1]


def test_what_it_finds_are_labels_that_a_ruleset_can_name() -> None:
    found = rulesets("test", "nude child").stdout.split("\n\n")[0].splitlines()[1:]
    assert found
    assert {line.split()[-1] for line in found} <= PromptGate.built_in().labels
