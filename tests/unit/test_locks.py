"""A lock between processes says that it waits, and is free once its holder is dead."""

from pinspect.core.locks import only_process
from tests.support.lock_holder import holder_killed_at_first_message

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
    with (
        holder_killed_at_first_message(HOLDER, caplog, str(lock)),
        only_process(lock, "data: waiting for another process"),
    ):
        assert [record.getMessage() for record in caplog.records] == ["data: waiting for another process"]
    with only_process(lock, "free again"):
        assert len(caplog.records) == 1
