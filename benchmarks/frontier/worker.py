"""One rank: train one case, leave what was measured as JSON."""

from __future__ import annotations

import json
import sys
from functools import partial

from benchmarks.frontier.cases import Case
from benchmarks.frontier.engines import make
from benchmarks.measure.setting import Setting
from benchmarks.spill.worker import leave


def main(case: str, setting: str, result: str) -> None:
    """Train `case` as `setting` says (both JSON) and write the report to `result`."""
    what, how = Case(**json.loads(case)), Setting(**json.loads(setting))
    leave(result, what.engine, how, partial(make, case=what, setting=how))


if __name__ == "__main__":
    main(*sys.argv[1:])
