"""A lock between processes says that it waits, and is free once its holder is dead."""

import subprocess
import sys

from pinspect.core.locks import only_process

HOLDER = """if True:
    import sys
    from pathlib import Path
    from pinspect.core.locks import only_process
    with only_process(Path(sys.argv[1]), "never waits"):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_a_process_that_waits_says_so_and_goes_on_when_the_holder_is_killed(tmp_path, caplog):
    lock = tmp_path / "new" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdin=-1, stdout=-1, text=True)
    assert holder.stdout.readline() == "held\n"

    def kill(record) -> bool:
        holder.kill()
        return True

    caplog.handler.addFilter(kill)
    try:
        with only_process(lock, "data: waiting for another process"):
            assert [record.getMessage() for record in caplog.records] == ["data: waiting for another process"]
    finally:
        caplog.handler.removeFilter(kill)
        holder.communicate()
    with only_process(lock, "free again"):
        assert len(caplog.records) == 1
