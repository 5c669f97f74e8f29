"""What a newcomer reads is complete: every setting, action, field, command and make target stands in the README."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.main import get_command

from gateway import errors
from gateway.cli import app
from gateway.dialects.imgen.request import FORMATS, SIZES
from gateway.settings import PREFIX, Settings
from handler.endpoint.settings import Settings as EndpointSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

ENDPOINT = [f.metadata["env"] for f in dataclasses.fields(EndpointSettings) if f.metadata.get("env")]
WORKER = sorted(set(re.findall(r'"(IMGEN_[A-Z_]+)"', (ROOT / "handler/settings.py").read_text(encoding="utf-8"))))
#: Set by the supervisor for its children, never by a person.
INTERNAL = {"IMGEN_PARENT_FD"}


@pytest.mark.parametrize(
    "name", sorted({PREFIX + field.upper() for field in Settings.model_fields} | {*ENDPOINT} | {*WORKER} - INTERNAL)
)
def test_every_setting_is_documented(name):
    assert f"`{name}`" in README


def test_the_documented_defaults_are_the_real_ones():
    for name, field in Settings.model_fields.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |"))
        if isinstance(field.default, bool):
            assert f"| `{str(field.default).lower()}` |" in row
        elif isinstance(field.default, int | float):
            assert f"| `{field.default:g}` |" in row or f"| `{field.default}` |" in row


def test_no_setting_is_documented_that_does_not_exist():
    known = {PREFIX + field.upper() for field in Settings.model_fields} | {*ENDPOINT} | {*WORKER}
    known |= {"IMGEN_API_KEY", "IMGEN_TEST_POSTGRES"}
    assert set(re.findall(r"`(IMGEN_[A-Z_]+)`", README)) <= known


def test_every_action_is_documented():
    source = (ROOT / "gateway/dialects/imgen/dialect.py").read_text(encoding="utf-8")
    actions = re.findall(r'^ +"(\w+)": self\._', source, re.M)
    assert {"models", "generate", "status"} <= {*actions}
    for action in actions:
        assert re.search(rf"^\| `{action}` \|", README, re.M), action


def test_every_field_of_generate_is_documented():
    folder = ROOT / "gateway/dialects/imgen"
    source = "".join((folder / name).read_text(encoding="utf-8") for name in ("dialect.py", "request.py"))
    for field in set(re.findall(r'fields\.(?:text|choice|flag|integer|decimal)\("(\w+)"', source)):
        assert f"`{field}`" in README or (field.startswith("wm_") and "`wm_*`" in README), field
    assert all(f"{w}x{h}" in README for w, h in SIZES) and all(f"`{name}`" in README for name in FORMATS)


def test_every_command_is_documented():
    for name, command in get_command(app).commands.items():
        if not command.hidden:
            assert f"imgen {name}" in README or f"`{name}" in README, name


def test_every_make_target_is_documented():
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert targets
    for target in targets:
        assert f"make {target}" in README or f"`{target}`" in README, target


def test_the_error_tree_at_the_top_of_its_module_is_complete():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.GatewayError)]
    drawn = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", (errors.__doc__ or "").partition("\n\n")[2]))
    assert {kind.__name__ for kind in kinds} - {"Unavailable"} == drawn - {"Unavailable"}


def test_nothing_names_a_registry_or_a_machine():
    """The constraints pin versions, not places."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in constraints and " @ " not in constraints
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line) for line in constraints.splitlines())
