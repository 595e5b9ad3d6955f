"""A failure in an environment of its own shows what the program printed."""

import sys

import pytest
from child import output_of


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('seen', flush=True); import time; time.sleep(60)", r"(?s)did not end within 2 s; it printed:\nseen"),
        ("import sys; print('out'); sys.exit('why')", r"(?s)exited with 1; .*why"),
    ],
)
def test_output_is_in_the_failure(code: str, message: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=message):
        output_of([sys.executable, "-c", code], timeout_s=2)
    assert output_of([sys.executable, "-c", "print(1)"], timeout_s=60) == "1\n"
