"""Certificates for loopback, made once by the gateway's own code."""

import datetime
from pathlib import Path

import pytest

from addons.net import certificates


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> certificates.Certificate:
    state = tmp_path_factory.mktemp("tls")
    return certificates.ensure(state, "127.0.0.1", datetime.datetime.now(datetime.UTC))


@pytest.fixture(scope="session")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confdir")
