"""What some tests need that not every machine has."""

import shutil

import pytest

from cluster.lab.linux import NetworkNamespace
from pipeline.command import InputError


def _missing_for_hosts() -> str | None:
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs iproute2"
    try:
        NetworkNamespace().close()
    except (InputError, OSError) as error:
        return str(error)
    return None


MISSING_FOR_HOSTS = _missing_for_hosts()
makes_hosts = pytest.mark.skipif(MISSING_FOR_HOSTS is not None, reason=MISSING_FOR_HOSTS or "")
