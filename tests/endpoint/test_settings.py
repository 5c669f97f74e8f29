"""The endpoint's settings, its log lines and the watch over its parent."""

import json
import logging
import os
import threading
from dataclasses import fields

import pytest

from handler.endpoint.log import JsonFormatter
from handler.endpoint.settings import BadSettings, Settings
from handler.parent import watch
from tests.endpoint.rig import PATIENCE

KEYS = {"IMGEN_ENDPOINT_KEY": "a", "IMGEN_ENDPOINT_WORKER_KEY": "b"}


def test_settings_come_from_the_mapping_and_have_runpods_values_by_default():
    settings = Settings.from_environ({**KEYS, "IMGEN_ENDPOINT_HOLD_S": "2.5", "IMGEN_ENDPOINT_RATE_LIMITS": "off"})
    assert (settings.hold_s, settings.rate_limits, settings.endpoint_id) == (2.5, False, "local")
    assert (settings.run_bytes, settings.runsync_bytes) == (10_000_000, 20_000_000)
    assert (settings.keep_run_s, settings.keep_runsync_s) == (1800, 60)


def test_every_variable_says_what_it_means():
    variables = [each.metadata for each in fields(Settings) if each.metadata]
    assert all(each["env"].startswith("IMGEN_ENDPOINT_") and each["meaning"] for each in variables)
    assert len({each["env"] for each in variables}) == len(variables)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IMGEN_ENDPOINT_KEY", " "),
        ("IMGEN_ENDPOINT_WORKER_KEY", ""),
        ("IMGEN_ENDPOINT_WORKER_KEY", "a"),
        ("IMGEN_ENDPOINT_HOLD_S", "soon"),
        ("IMGEN_ENDPOINT_HOLD_S", "90"),
        ("IMGEN_ENDPOINT_LEASE_S", "-1"),
        ("IMGEN_ENDPOINT_LEASE_S", "nan"),
        ("IMGEN_ENDPOINT_REQUEUES", "1.5"),
        ("IMGEN_ENDPOINT_RATE_LIMITS", "perhaps"),
        ("IMGEN_ENDPOINT_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_value_names_its_variable(variable, value):
    with pytest.raises(BadSettings, match=variable):
        Settings.from_environ({**KEYS, variable: value})


def test_a_log_line_is_one_json_object_with_the_ids():
    record = logging.makeLogRecord({"msg": "job queued", "levelname": "INFO", "job": "j", "request_id": None})
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["level"], line["job"]) == ("job queued", "info", "j")
    assert "request_id" not in line


def test_the_watch_notices_that_the_parent_closed_its_end():
    read, write = os.pipe()
    gone = threading.Event()
    thread = watch(read, gone.set)
    os.write(write, b"still here")
    assert not gone.is_set()
    os.close(write)
    assert gone.wait(PATIENCE)
    thread.join(PATIENCE)
    os.close(read)
