"""The last words of a program."""

import pytest

from cluster.lab.program_log import last_line_of


@pytest.mark.parametrize(
    ("text", "last", "last_error"),
    [
        ("", "it said nothing", "it said nothing"),
        ("began\nended\n\n", "ended", "ended"),
        ("error: one\nerror: two\nended\n", "ended", "error: two"),
    ],
)
def test_the_last_line_of_a_log_is_told(tmp_path, text, last, last_error):
    log = tmp_path / "log"
    log.write_text(text)
    assert (last_line_of(log), last_line_of(log, "error: ")) == (last, last_error)
