import pytest

from compliance.authority import load_or_create
from compliance.rules import PromptGate
from tests.compliance.samples import new_signer


@pytest.fixture(scope="session")
def credentials(tmp_path_factory):
    return load_or_create(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="session")
def signer(credentials):
    return new_signer(credentials)


@pytest.fixture(scope="session")
def gate():
    return PromptGate.built_in()
