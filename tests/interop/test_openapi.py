"""The HTTP API against its own description: requests made from `/openapi.json`, valid and not."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ServerProcess

# What is valid by the schema may still be refused: that integers anywhere in `data` fit into
# 64 bits, or that a cursor was given out, is no matter of schemas.
_LEFT_OUT = "positive_data_acceptance"


@pytest.mark.timeout(seconds=160)
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    with ServerProcess() as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"{server.url}/openapi.json",
                "--header=Authorization: Bearer dev.galecast",
                "--exclude-path=/v1/sse",
                "--exclude-path=/v1/ws",
                f"--exclude-checks={_LEFT_OUT}",
                "--phases=examples,coverage,fuzzing,stateful",
                "--max-examples=20",
                "--generation-deterministic",
                "--continue-on-failure",
                "--warnings=off",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert "test cases" in done.stdout.lower()
        # What the server did not expect would stand in its log.
        assert '"level":"error"' not in server.log
