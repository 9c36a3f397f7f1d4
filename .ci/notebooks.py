"""Run all notebooks as nbdev_test does, in two processes, the long ones first; then say which took how long.

Cells `#| slow` run, too. With --fast they do not, nor do the tutorials, which are one long cell after the other.
"""

import os
import sys
import time
from unittest.mock import patch

from fastcore.parallel import parallel
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

IN_JUPYTERLAB = ("tutorials/your_own_images",)  # run there, to its end, by tests/detector/test_jupyter.py
LONG = (  # ten seconds and more: first, so that no process is left alone with one of them at the end
    "tutorials/which_method",
    "methods/10_kdad",
    "methods/18_ahl",
    "detector/detector",
    "detector/comparison",
    "methods/05_dra",
    "methods/07_flos",
    "methods/12_minns",
    "profiling",
    "cli/study_commands",
    "evaluation/explain",
    "detector",
    "methods",
)


def rank(name):
    "Place in the order: that of the first entry of LONG which is the notebook or its folder"
    return next((i for i, long in enumerate(LONG) if f"{name}/".startswith(f"{long}/")), len(LONG))


def in_order(files, nbs, fast=False):
    "The long ones first, the others by name; none beside a file `.notest`, no tutorials if fast"
    names = {f: f.relative_to(nbs).with_suffix("").as_posix() for f in files if not (f.parent / ".notest").exists()}
    kept = [f for f in names if names[f] not in IN_JUPYTERLAB and not (fast and names[f].startswith("tutorials/"))]
    return sorted(kept, key=lambda f: (rank(names[f]), names[f]))


def run(file, **how):
    "Run a notebook; what it leaves in the environment, such as a cache of its own, does not reach the next one"
    with patch.dict(os.environ):
        return test_nb(file, **how)


def main():
    config, start, fast = get_config(), time.perf_counter(), "--fast" in sys.argv[1:]
    files = in_order([f.absolute() for f in nbglob(as_path=True)], config.nbs_path.absolute(), fast)
    left_out = set(config.tst_flags.split()) - (set() if fast else {"slow"})
    how = dict(skip_flags=left_out, do_print=True, basepath=config.config_path)
    results = parallel(run, files, n_workers=2, pause=0.01, **how)
    for seconds, file in sorted(((t, f) for (_, t), f in zip(results, files)), reverse=True)[:10]:
        print(f"{seconds:6.1f} s {file.relative_to(config.nbs_path.absolute())}")
    print(f"{len(files)} notebooks in {time.perf_counter() - start:.0f} s")
    failed = [str(f) for (passed, _), f in zip(results, files) if not passed]
    if failed:
        sys.exit("these notebooks failed:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    import notebooks  # by its name: notebooks take the place of `__main__` in the processes that run them

    notebooks.main()
