"Limits of time and memory for what a test reads."

import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(what):
    "A memory figure of this process in MB, as Linux tells it; 0 elsewhere"
    return int(re.search(rf"{what}:\s*(\d+)", STATUS.read_text())[1]) / 1024 if CLEAR.exists() else 0


@contextmanager
def bounded(seconds=3, megabytes=1500):
    "Fails if the block takes longer, or lets the memory of this process grow by more at any moment"
    if os.access(CLEAR, os.W_OK):
        CLEAR.write_text("5")  # forget the peak
    before, start = memory("VmHWM"), time.process_time()
    yield
    assert time.process_time() - start < seconds and memory("VmHWM") - before < megabytes
