"""Files that appear complete or not at all."""

import math

import pytest

from pipeline.system.files import write_json


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_what_is_no_json_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "document.json", {"value": value})
    assert list(tmp_path.iterdir()) == []
