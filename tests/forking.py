"""Deaths and full disks in quick succession, for test_faults.py and test_crash.py.

A process that has imported everything runs jobs in children that it forks. A job arrives as a line of JSON on the
standard input: what to run, and at which point of it what shall happen. The child's status, output and result go back
as a line of JSON.
"""

import ctypes
import errno
import functools
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

# ---- what happens, and when


def halve(args):
    "Cut the file that a function has just written to half its length; the file is among its arguments"
    path = next(a for a in args if isinstance(a, (str, Path)) and os.path.isfile(a))
    os.truncate(path, os.path.getsize(path) // 2)


def happen(how, args=()):
    "The end of the process, a signal to it, or a full disk"
    if how == "exit":
        os._exit(9)
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *map(str, args[:1]))
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}[how])


def wrap(where, n=1, when="before", how="kill", only="", each=False, log=None):
    """Let it happen before, after or half-way through the n-th call of a function

    only: count those calls alone that name a file with this in its name; each: in all later calls, too."""
    module, _, path = where.partition(":")
    *outer, name = path.split(".")
    owner, calls = functools.reduce(getattr, outer, importlib.import_module(module)), []
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if only and not any(only in str(a).rpartition("/")[2] for a in args):
            return real(*args, **kwargs)
        calls.append(1)
        if log is not None:
            log.append(1)
        now = len(calls) == n or each and len(calls) > n
        if now and when == "before":
            happen(how, args)
        result = real(*args, **kwargs)
        if now and when == "half":
            halve(args)
        if now and when in ("half", "after"):
            happen(how, args)
        return result

    setattr(owner, name, wrapped)


# ---- jobs


def little():
    "A network that is made at once"
    from torch import nn

    from dra_nb.models.network import Backbone

    return Backbone(
        nn.Sequential(OrderedDict(a=nn.Conv2d(3, 8, 4, 4), b=nn.BatchNorm2d(8), c=nn.ReLU(), d=nn.Conv2d(8, 16, 2, 2))),
        dict(c=(8, 4), d=(16, 8)),
    )


def specs(seeds):
    from conftest import short_spec

    from dra_nb.methods.schedule import Schedule

    return [
        short_spec(
            "mine", seed=s, image_size=64, backbone="little", schedule=Schedule(epochs=3, steps=2, batch=6, anomalies=2)
        )
        for s in seeds
    ]


def study(data, out, seeds=(0, 1), cache=None, at=None, checkpoint=1, features=True, retries=1, limit=None):
    """The runs of some seeds in this process: counts, number of training steps

    at: arguments of `wrap`; limit: bytes that a file may have."""
    from dra_nb.experiments.context import RunContext, _open_store
    from dra_nb.experiments.executors import ExecutorOptions
    from dra_nb.experiments.records import Runs
    from dra_nb.experiments.study import run_missing
    from dra_nb.training.compute import Compute

    if cache:
        os.environ["DRA_NB_CACHE"] = cache
        _open_store.cache_clear()
    steps = []
    wrap("dra_nb.data.samplers:BalancedSampler.draw", 0, log=steps)
    if at:
        wrap(**at)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        counts = run_missing(
            specs(seeds),
            RunContext(data, compute=Compute("cpu"), checkpoint_every=checkpoint),
            Runs(out),
            progress=False,
            executor=ExecutorOptions(workers=1),
            features=features,
            retries=retries,
        )
    finally:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    return counts._asdict() | dict(steps=len(steps))


def render(root, at=None):
    "Few pictures of each texture"
    from dra_nb.data.textures import render_textures

    if at:
        wrap(**at)
    return str(render_textures(root, n_train=2, n_test=1, n_anomalies=1, progress=False))


def command(args, at=None, cache=None):
    "The command line at a smaller profile; its notebooks are not executed"
    from toys import UNTRAINED

    from dra_nb.cli import main as cli
    from dra_nb.cli import study_commands
    from dra_nb.experiments.context import _open_store
    from dra_nb.experiments.profiles import PROFILES

    study_commands.run_notebooks = lambda *args: None
    study_commands.check_kernel = lambda: None
    if cache:
        os.environ["DRA_NB_CACHE"] = cache
        _open_store.cache_clear()
    if at:
        wrap(**at)
    small = replace(PROFILES["smoke"], **(UNTRAINED | dict(backbone="little")), epochs=2, steps=3, batch=6)
    PROFILES["smoke"] = small
    sys.argv = ["dra_nb", *args]
    cli.main()


@contextmanager
def small_disk(folder, size=2**20):
    "A disk of so many bytes at a folder, seen by this process and its children alone"
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    own, ids = 0x20000, (os.getuid(), os.getgid())  # CLONE_NEWNS
    if libc.unshare(own):  # without privileges: in a user namespace
        done(libc.unshare(own | 0x10000000))
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
            Path("/proc/self", file).write_text(text)
    done(libc.mount(b"none", b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    done(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))
    yield
    done(libc.umount(os.fsencode(folder)))


def full_disk(data, out, free, checkpoint=0):
    """A study on a disk with `free` bytes, then the same with room: what each gave, and the files between

    At the end all files are in `out`."""
    kept = Path(f"{out}.kept")
    shutil.copytree(out, kept)
    with small_disk(out):
        shutil.copytree(kept, out, dirs_exist_ok=True)
        filler = Path(out, "filler")
        here = os.statvfs(out)
        filler.write_bytes(bytes(here.f_bavail * here.f_frsize - free))
        first = in_child(f"{out}.first", "study", dict(data=data, out=out, checkpoint=checkpoint))
        filler.unlink()
        between = sorted(os.listdir(out))
        second = in_child(f"{out}.second", "study", dict(data=data, out=out, checkpoint=checkpoint))
        shutil.rmtree(kept)
        shutil.copytree(out, kept)
    shutil.copytree(kept, out, dirs_exist_ok=True)
    return dict(first=first, between=between, second=second)


# ---- children


def in_child(files, job, arguments):
    """Do a job in a forked child: its status (negative: the signal that ended it), output and result

    files: the beginning of the names of its files."""
    paths = {k: f"{files}.{k}" for k in ("out", "err", "result")}
    Path(paths["result"]).unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for number, kind in ((1, "out"), (2, "err")):
                os.dup2(os.open(paths[kind], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
            Path(paths["result"]).write_text(json.dumps(globals()[job](**arguments)))
            status = 0
        except SystemExit as e:
            status = e.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = {k: Path(p).read_text(errors="replace") if os.path.exists(p) else "" for k, p in paths.items()}
    return dict(status=status, out=text["out"], err=text["err"], result=json.loads(text["result"] or "null"))


def warm(data, cache):
    "Import what a run needs and decode the images; nothing that starts a thread"
    os.environ["DRA_NB_CACHE"] = cache
    for name in (
        "ipykernel",
        "papermill",
        "sklearn.metrics",
        "dra_nb.cli.main",
        "dra_nb.reporting.page",
        "dra_nb.reporting.results_table",
    ):
        importlib.import_module(name)
    importlib.import_module("torch._dynamo")  # the last, as the first optimiser would import it

    from dra_nb.experiments.context import RunContext
    from dra_nb.experiments.execution import check_runs
    from dra_nb.models.backbone import BACKBONES, BackboneEntry
    from dra_nb.training.compute import Compute

    BACKBONES["little"] = BackboneEntry(little, "", ())
    check_runs(specs([0]), RunContext(data, compute=Compute("cpu")))


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    warm(*sys.argv[1:3])
    for line in sys.stdin:
        print(json.dumps(in_child(*json.loads(line))), flush=True)
