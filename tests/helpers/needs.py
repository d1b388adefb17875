"""What some tests need that not every machine has."""

import pytest

from cluster.lab.hosts import check_rights
from pipeline.command import InputError


def _missing_for_hosts() -> str | None:
    try:
        check_rights()
    except (InputError, OSError) as error:
        return str(error)
    return None


MISSING_FOR_HOSTS = _missing_for_hosts()
makes_hosts = pytest.mark.skipif(MISSING_FOR_HOSTS is not None, reason=MISSING_FOR_HOSTS or "")
