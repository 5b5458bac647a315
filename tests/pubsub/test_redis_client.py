"""What Redis answers, told apart."""

import pytest
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from pubsub.redis_client import refusal_code
from pubsub.redis_lane import CallFailed, _refusal

# As redis-py gives them: it takes "ERR" and the codes that it knows off the text.
IN_SCRIPT = "Error running script (call to f_71d0): @user_script:146: @user_script: 146: -"


@pytest.mark.parametrize(
    ("refusal", "code", "passing"),
    [
        (ReadOnlyError("You can't write", status_code="READONLY"), "READONLY", True),
        (ReadOnlyError("You can't write"), "You", True),
        (ResponseError("NOREPLICAS Not enough good replicas"), "NOREPLICAS", True),
        (ResponseError("BUSY Redis is busy running a script"), "BUSY", True),
        (ResponseError(f"{IN_SCRIPT}READONLY You can't write"), "READONLY", True),
        (ResponseError(f"{IN_SCRIPT}TRYAGAIN Multiple keys"), "TRYAGAIN", True),
        (ResponseError(f"{IN_SCRIPT}NOREPLICAS Not enough"), "NOREPLICAS", True),
        (ResponseError(f"{IN_SCRIPT}OOM command not allowed"), "OOM", False),
        (NoPermissionError("no", status_code="NOPERM"), "NOPERM", False),
        (ResponseError("wrong number of arguments"), "wrong", False),
    ],
)
def test_refusals_that_pass_are_known_also_inside_scripts_of_older_servers(
    refusal: ResponseError, code: str, passing: bool
) -> None:
    assert refusal_code(refusal) == code
    failed = _refusal(refusal)
    assert isinstance(failed, CallFailed)
    assert (failed.passing, failed.refused) == (passing, True)
