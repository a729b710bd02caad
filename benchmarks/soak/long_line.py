"""One reader of rows on one file, in a process whose memory is measured: READER PATH."""

import sys
from typing import Any

from pipestill.config import DataConfig
from pipestill.errors import PipestillError


def _rows(path: str) -> str:
    from pipestill.data.rows import Row, read_rows

    items = [isinstance(item, Row) for item in read_rows(path, DataConfig())]
    return f"good {items.count(True)} bad {items.count(False)}"


def _batch(path: str) -> str:
    from pipestill.serving.batch_rows import read_shard

    rows, bad, _ = read_shard(path, "0/1")
    return f"good {len(rows)} bad {len(bad)}"


def _log(path: str) -> str:
    from pipestill.retrain.logs import read_log

    return f"done: {dict(read_log(path, 1.0).counts)}"


def _digest(path: str) -> str:
    from pipestill.data.digest import content_digest

    return f"done: {content_digest(path)}"


READERS: dict[str, Any] = {"rows": _rows, "batch": _batch, "log": _log, "digest": _digest}

if __name__ == "__main__":
    try:
        print(READERS[sys.argv[1]](sys.argv[2]))
    except PipestillError as error:
        sys.exit(str(error))
