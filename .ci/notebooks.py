"""Run all notebooks as nbdev_test does, in two processes, the long ones first; then say which took how long.

With --fast the long ones are left out.
"""

import sys
import time

from fastcore.parallel import parallel
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

LONG = (  # ten seconds to a minute: first, so that no process is left alone with one of them at the end
    "tutorials/your_own_images",
    "tutorials/which_method",
    "methods/18_ahl",
    "methods/10_kdad",
    "detector/detector",
    "methods/05_dra",
    "methods/07_flos",
    "methods/12_minns",
    "cli/study_commands",
    "evaluation/explain",
    "profiling/steps",
    "methods/08_saoe",
    "methods/09_mlep",
    "detector/evaluate",
    "detector/onnx",
    "models/03_timm",
    "methods/06_devnet",
    "training/loop",
    "detector/widgets",
)


def in_order(files, nbs, fast=False):
    "The long ones, if not only the fast ones are asked for, then the others by name; none beside a file `.notest`"
    names = {f: f.relative_to(nbs).with_suffix("").as_posix() for f in files if not (f.parent / ".notest").exists()}
    missing = [name for name in LONG if name not in names.values()]
    if missing:
        raise SystemExit(f"no notebooks {', '.join(missing)}: correct LONG in {__file__}")
    if fast:
        return sorted(f for f in names if names[f] not in LONG)
    return sorted(names, key=lambda f: (LONG.index(names[f]) if names[f] in LONG else len(LONG), names[f]))


def main():
    config, start = get_config(), time.perf_counter()
    files = in_order([f.absolute() for f in nbglob(as_path=True)], config.nbs_path.absolute(), "--fast" in sys.argv[1:])
    how = dict(skip_flags=config.tst_flags.split(), do_print=True, basepath=config.config_path)
    results = parallel(test_nb, files, n_workers=2, pause=0.01, **how)
    for seconds, file in sorted(((t, f) for (_, t), f in zip(results, files)), reverse=True)[:20]:
        print(f"{seconds:6.1f} s {file.relative_to(config.nbs_path.absolute())}")
    print(f"{len(files)} notebooks in {time.perf_counter() - start:.0f} s")
    failed = [str(f) for (passed, _), f in zip(results, files) if not passed]
    if failed:
        sys.exit("these notebooks failed:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
