"Processes of their own for tests: start them, wait for them, see whether they live."

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

HERE = os.path.dirname(__file__)


def until(condition, seconds=120):
    "Wait for something; its value"
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def start_python(started, *argv):
    "Start Python on these arguments; the process is added to a list, of which `end_all` takes care"
    command = [sys.executable, *map(str, argv)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)
    started.append(process)
    return process


def end_all(started):
    "Kill what a test has left running"
    for process in started:
        process.kill()
        process.communicate()


@contextmanager
def forking(data, cache):
    "Do a job in a forked child of a process that has everything imported, see forking.py: a function of files and job"
    command = [sys.executable, "forking.py", str(data), str(cache)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)

    def do(files, job, **arguments):
        print(json.dumps([str(files), job, arguments]), file=server.stdin, flush=True)
        return SimpleNamespace(**json.loads(server.stdout.readline()))

    do.data = str(data)
    yield do
    server.kill()
    server.communicate()


def ended(process):
    "Output of a process that ended well"
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return SimpleNamespace(out=out, err=err)
