"Records: what is written comes back, what is damaged is named, and nothing that lies in a folder of runs gives a traceback."
import copy, json, os, pickle, subprocess, sys
from dataclasses import asdict, replace

import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from typer.testing import CliRunner

from conftest import REPO
from dra_nb.core import DraError
from dra_nb.experiments.records_cli import runs_app
from dra_nb.experiments.runs import Damaged, Runs, RunSpec, checksum, describe_error, spec_from
from dra_nb.methods.method import Schedule
from dra_nb.training.metrics import evaluate

REAL = REPO/"outputs"/"cpu"/"runs"

def table(seed=0, n=30, shift=1.):
    "Scores of 2n made-up test images; every path has two rows, as crops of one image have"
    rng, label = np.random.default_rng(seed), np.repeat([0, 1], n)
    score = (shift*label + rng.normal(0, 1, 2*n)).astype("float32")
    return pd.DataFrame(dict(path=[f"images/{i//2:03}.png" for i in range(2*n)], label=label, defect=np.where(label, "dent", ""), seen=(label == 1) & (rng.random(2*n) < .5),
                             score=score, score_seen=score/2, score_pseudo=score/2))

ORIGIN = dict(version="0.1.0", commit="0123456789ab", device="a processor, 1 threads", finished="2026-11-23T12:00:00+00:00", losses=[{"seen": .5}, {"seen": .25}])

def write(runs, spec, scores=None):
    scores = table(spec.seed) if scores is None else scores
    runs.write(spec, evaluate(scores.score, scores.label, scores.seen), dict(seconds=12.5, training=10.), ORIGIN, scores)
    return spec

def with_features(scores):
    vectors = list(np.random.default_rng(0).normal(size=(len(scores), 4)).astype("float32"))
    return scores[["path", "label", "defect", "seen"]].assign(row=range(len(scores)), given=False, tested=True, features=vectors)

def change(path, function=None, resign=True):
    "Edit a record; resign: also its checksum, as one would who knows how"
    record = json.loads(path.read_text())
    record = function(record) or record
    if resign: record["record_sha256"] = checksum(record)
    path.write_text(json.dumps(record))

def long_ago(path): os.utime(path, (1, 1))

@pytest.fixture
def runs(tmp_path):
    runs = Runs(tmp_path/"runs")
    for seed in range(2): write(runs, RunSpec("elpv", seed=seed, settings={"heads": ["seen"]}))
    return runs

@pytest.fixture
def call(runs, monkeypatch):
    "Run the command on a folder: status and output, or the DraError"
    monkeypatch.setenv("COLUMNS", "120")
    def run(*args, folder=runs.folder):
        result = CliRunner().invoke(runs_app, [*map(str, args), "--runs", str(folder)])
        if result.exception and not isinstance(result.exception, SystemExit): raise result.exception
        return result.exit_code, result.output
    return run

# ---- keys

def test_keys_never_change():
    assert RunSpec("elpv").key == "c31b4a489ba82f07"
    hard = RunSpec("mvtec", "carpet", "hard", "hole", 1, 2, "devnet", {"heads": ("a", "b"), "x": 1.5}, Schedule(epochs=3, lr=1e-3), 224, "resnet18_stage2", "w-1")
    assert hard.key == "a1cbbc3bb3ef26cd" and replace(hard, source="tile").key == "69b82a0bbb06ebc5"

def test_keys_of_the_committed_records():
    files = sorted(REAL.glob("[!.]*.json"))
    assert len(files) >= 144
    for f in files: assert spec_from(json.loads(f.read_text())["spec"]).key == f.stem

def test_the_committed_records_are_whole():
    runs = Runs(REAL)
    assert runs.verify() == [] and len(runs.ls()) == len(runs.keys()) >= 144

# ---- older and newer

def test_older_records_are_read(runs):
    key = RunSpec("elpv", seed=0, settings={"heads": ["seen"]}).key
    def age(record):
        for field in ("schema", "key", "provenance", "record_sha256", "scores_sha256"): del record[field]
        del record["spec"]["source"]
    change(runs.path(key), age, resign=False)
    assert "schema" not in json.loads(runs.path(key).read_text())
    assert runs.verify() == [] and len(runs.scores(key)) == 60 and len(runs.frame([spec_from(runs.read(key)["spec"])])) == 1
    assert runs.ls().set_index("key").loc[key, "device"] == "" and runs.export(runs.folder.parent/"all.parquet") == 2

def test_newer_records_are_refused(runs, call):
    key = runs.keys()[0]
    change(runs.path(key), lambda r: dict(schema=2, something="else"))
    for read in (runs.read, runs.scores):
        with pytest.raises(DraError, match=rf"{key}.json has schema 2, this version of dra_nb reads up to 1; upgrade dra_nb"): read(key)
    status, out = call("verify")
    assert status == 1 and "newer" in out and "upgrade" in out

# ---- writing

def test_whats_written_comes_back(runs):
    spec = write(runs, RunSpec("elpv", seed=7, settings={"heads": ("seen",), "x": None, "é": "\u2028"}))
    record = runs.read(spec)
    assert record == runs.read(spec.key) and record["metrics"]["auroc"] == evaluate(*(table(7)[c] for c in ("score", "label", "seen")))["auroc"]
    assert spec_from(record["spec"]).key == spec.key and record["record_sha256"] == checksum(record)
    pd.testing.assert_frame_equal(runs.scores(spec), table(7))
    assert runs.frame([spec, RunSpec("none")]).key.tolist() == [spec.key] and runs.verify() == []

def test_stopped_between_scores_and_record(runs, monkeypatch):
    "A run is repeated, its scores come out otherwise, and the process dies before it writes the record"
    spec = RunSpec("elpv", seed=0, settings={"heads": ["seen"]})
    monkeypatch.setattr(Runs, "_json", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): write(runs, spec)
    assert runs.done(spec) and runs.verify() == []  # the same scores: the old record still holds
    with pytest.raises(KeyboardInterrupt): write(runs, spec, table(99))
    assert not runs.done(spec) and runs.verify() == []
    long_ago(runs.path(spec, "parquet"))
    assert [f.kind for f in runs.verify()] == ["left over"] and runs.sweep() == [f"{spec.key}.parquet"]

def test_features(runs):
    spec = RunSpec("elpv", seed=0, settings={"heads": ["seen"]})
    assert runs.done(spec) and not runs.done(spec, features=True)
    with pytest.raises(DraError, match="has no features"): runs.features(spec)
    with pytest.raises(DraError, match="has no column row, given, tested, features"): runs.write_features(spec, table())
    runs.write_features(spec, with_features(table(0)))
    assert runs.done(spec, features=True) and runs.verify() == []
    pd.testing.assert_frame_equal(runs.features(spec), with_features(table(0)))
    path = runs.path(spec, "features.parquet")
    data = bytearray(path.read_bytes())
    data[len(data)//4] ^= 1  # one bit in a page of values
    path.write_bytes(data)
    with pytest.raises(DraError, match="features.parquet.*delete it"): runs.features(spec)

def test_failures(runs):
    spec = RunSpec("elpv", seed=5)
    def remote():
        try: raise RuntimeError('\n"""\nTraceback:\n  File "/home/anna/env/lib/python3.11/site-packages/torch/nn/m.py", line 1, in f\nValueError: /srv/anna/data/elpv/x.png\n"""')
        except RuntimeError as e: raise MemoryError("out of memory in /srv/anna/data/elpv/x.png") from e
    try: remote()
    except MemoryError as e: runs.write_failure(spec, e, attempts=3)
    failure, text = runs.failure(spec), runs.path(spec, "failed.json").read_text()
    assert failure["error"] == "MemoryError: out of memory in elpv/x.png" and failure["attempts"] == 3 and spec_from(failure["spec"]) == spec
    assert "anna" not in text and str(REPO) not in text and '  File "torch/nn/m.py", line 1, in f' in failure["traceback"] and "test_records.py" in text
    assert failure["time"][:2] == "20" and failure["provenance"]["python"] and not runs.done(spec) and runs.verify() == []
    assert runs.failures()[["key", "run", "attempts"]].to_numpy().tolist() == [[spec.key, str(spec), 3]]
    runs.path(spec, "failed.json").write_text(text[:100])
    with pytest.raises(DraError, match=r"failed.json ends too early; delete it"): runs.failure(spec)
    write(runs, spec)
    assert runs.failure(spec) is None and runs.failures().empty
    runs.path(spec, "failed.json").write_text('{"schema": 1, "error": "E: e", "spec": {"dataset": "elpv"}}')  # of the version before
    assert runs.failure(spec)["attempts"] == 1

class Mute(Exception):
    def __str__(self): raise OSError
def test_any_error_can_be_described():
    assert describe_error(Mute())["error"] == "Mute"
    def deep(n): return deep(n + 1)
    try: deep(0)
    except RecursionError as e: assert len(describe_error(e)["traceback"]) < 30
    assert len(describe_error(ValueError("x\n"*10**6))["traceback"]) <= 200

def test_errors_of_records_travel_between_processes(runs):
    key = runs.keys()[0]
    runs.path(key).write_text("{")
    with pytest.raises(Damaged) as error: runs.read(key)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.kind, again.file) == (str(error.value), "truncated", f"{key}.json")

# ---- verify

def cut(path): path.write_bytes(path.read_bytes()[:-30])
def rewrite(path, **columns): pd.read_parquet(path).assign(**columns).to_parquet(path, index=False)
def digest(runs, key):
    "Sign the scores that are there now, as one would who knows how"
    import hashlib
    change(runs.path(key), lambda r: r.update(scores_sha256=hashlib.sha256(runs.path(key, "parquet").read_bytes()).hexdigest()))
def fewer(runs, key):
    pd.read_parquet(runs.path(key, "parquet")).iloc[1:].to_parquet(runs.path(key, "parquet"), index=False)
    digest(runs, key)
def otherwise(runs, key, **columns):
    rewrite(runs.path(key, "parquet"), **columns)
    digest(runs, key)

def nested(n): return [nested(n - 1)] if n else []

DAMAGE = {  # what is done -> the kinds that verify finds
    "json cut": (lambda r, k: cut(r.path(k)), ["truncated"]),
    "json empty": (lambda r, k: r.path(k).write_text(""), ["truncated"]),
    "json cut behind a brace": (lambda r, k: r.path(k).write_text('{"spec": {}'), ["truncated"]),
    "json of zeros": (lambda r, k: r.path(k).write_bytes(bytes(2000)), ["not JSON"]),
    "json is prose": (lambda r, k: r.path(k).write_text("see the other folder"), ["not JSON"]),
    "json is a list": (lambda r, k: r.path(k).write_text("[]"), ["not JSON"]),
    "json nested without end": (lambda r, k: r.path(k).write_text('{"a":'*10**5 + "1" + "}"*10**5), ["not JSON"]),
    "json nested too deep": (lambda r, k: change(r.path(k), lambda x: x["provenance"].update(a=nested(100))), ["not JSON"]),
    "json too large": (lambda r, k: os.truncate(r.path(k), 10**9), ["not readable"]),
    "json is a folder": (lambda r, k: (r.path(k).unlink(), r.path(k).mkdir()), ["not readable"]),
    "json is a pipe": (lambda r, k: (r.path(k).unlink(), os.mkfifo(r.path(k))), ["not readable"]),
    "metric edited": (lambda r, k: change(r.path(k), lambda x: x["metrics"].update(auroc=.99), resign=False), ["edited"]),
    "provenance edited": (lambda r, k: change(r.path(k), lambda x: x["provenance"].update(device="abacus"), resign=False), ["edited"]),
    "metric edited and signed": (lambda r, k: change(r.path(k), lambda x: x["metrics"].update(auroc=.99)), ["metrics"]),
    "metric gone": (lambda r, k: change(r.path(k), lambda x: x["metrics"].pop("auroc") and None), ["metrics"]),
    "counts edited and signed": (lambda r, k: change(r.path(k), lambda x: x["metrics"].update(n_normal=31)), ["rows"]),
    "spec edited and signed": (lambda r, k: change(r.path(k), lambda x: x["spec"].update(shots=1)), ["key"]),
    "spec with an unknown field": (lambda r, k: change(r.path(k), lambda x: x["spec"].update(moon="full")), ["key"]),
    "json renamed": (lambda r, k: [r.path(k, e).rename(r.path("0"*16, e)) for e in ("json", "parquet")], ["key"]),
    "no metrics": (lambda r, k: change(r.path(k), lambda x: x.pop("metrics") and None), ["edited"]),
    "scores gone": (lambda r, k: r.path(k, "parquet").unlink(), ["scores missing"]),
    "scores cut": (lambda r, k: cut(r.path(k, "parquet")), ["truncated"]),
    "scores edited": (lambda r, k: rewrite(r.path(k, "parquet"), score=.5), ["edited"]),
    "scores edited and signed": (lambda r, k: otherwise(r, k, score=np.linspace(0, 1, 60)), ["metrics"]),
    "a row gone, signed": (fewer, ["rows", "metrics"]),
    "scores not finite, signed": (lambda r, k: otherwise(r, k, score=np.nan), ["metrics"]),
    "scores are text, signed": (lambda r, k: otherwise(r, k, score="high"), ["corrupt"]),
    "labels of another kind, signed": (lambda r, k: otherwise(r, k, label=7), ["corrupt"]),
    "scores are no parquet, signed": (lambda r, k: (r.path(k, "parquet").write_bytes(b"PAR1 and more PAR1"), digest(r, k)), ["corrupt"]),
    "features of other images": (lambda r, k: r.write_features(spec_from(r.read(k)["spec"]), with_features(table(3, 29))), ["rows"]),
    "features of another run": (lambda r, k: (r.write_features(RunSpec("x"), with_features(table())), r.path(RunSpec("x"), "features.parquet").rename(r.path(k, "features.parquet"))), ["key"]),
    "failure beside a record": (lambda r, k: r.write_failure(spec_from(r.read(k)["spec"]), ValueError()), ["left over"]),
    "checkpoint beside a record": (lambda r, k: r.path(k, "ckpt").write_bytes(b""), ["left over"]),
}
@pytest.mark.parametrize("what", DAMAGE)
def test_verify(runs, call, what):
    damage, kinds = DAMAGE[what]
    key = RunSpec("elpv", seed=0, settings={"heads": ["seen"]}).key
    damage(runs, key)
    found, key = runs.verify(), "0"*16 if "renamed" in what else key
    assert sorted(f.kind for f in found) == sorted(kinds) and all(f.file.startswith(key) for f in found), found
    status, out = call("verify")
    assert status == 1 and all(f"{f.file}: {f.kind}: " in out for f in found)
    call("ls")  # lists what can be listed
    if kinds == ["left over"]: assert call("verify", "--sweep")[0] == 0
    else:
        if "folder" in what: runs.path(key).rmdir()
        call("rm", key)
        assert call("verify")[0] == 0 and len(runs.keys()) == 1

def dead():
    "The number of a process that is gone"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid

def test_what_processes_leave(runs):
    from dra_nb.experiments.claiming import claimed
    key, gone = runs.keys()[0], dead()
    def part(pid, old=True):
        path = runs.folder/f".{key}.json.{pid}.part"
        path.write_text("{")
        if old: long_ago(path)
        return path
    living, fresh, left = part(os.getpid()), part(f"{gone}0000"), part(gone)  # a number this large is no process
    fresh.touch()
    assert [f.file for f in runs.verify()] == [left.name] == runs.sweep()
    assert living.exists() and fresh.exists() and not left.exists()
    other = RunSpec("elpv", seed=9)
    runs.path(other, "parquet").write_bytes(b""); long_ago(runs.path(other, "parquet"))
    runs.path(other, "ckpt").write_bytes(b""); long_ago(runs.path(other, "ckpt"))  # of a run that will be continued
    with claimed(runs.path(other, "claim")):
        assert runs.verify() == [] == runs.sweep()
        with pytest.raises(DraError, match="is being computed just now"): runs.remove(other.key)
        kept = runs.path(other, "claim").read_text()
    assert [f.file for f in runs.verify()] == [f"{other.key}.parquet"]
    runs.path(other, "claim").write_text(json.dumps(json.loads(kept) | dict(pid=gone)))
    assert [f.file for f in runs.verify()] == [f"{other.key}.claim", f"{other.key}.parquet"]
    assert sorted(runs.sweep()) == [f"{other.key}.claim", f"{other.key}.parquet"] and runs.verify() == [] and runs.path(other, "ckpt").exists()

def test_a_folder_that_is_not_there(tmp_path):
    runs = Runs(tmp_path/"none")
    assert runs.verify() == [] == runs.keys() == runs.sweep() and runs.ls().empty and runs.failures().empty and runs.frame([RunSpec("x")]).empty
    assert not runs.folder.exists()

# ---- ls, show, diff, rm, export

def test_ls(runs, call):
    write(runs, RunSpec("mvtec", "metal_nut", "hard", "scratch", 1, method="devnet", settings={"heads": ["seen", "pseudo", "residual", "normality"], "n_reference": 10}))
    write(runs, RunSpec("bottle", "b", "cross_domain", source="a", shots=0))
    for path in runs.folder.glob("*.parquet"): path.write_bytes(b"lists do not read scores")
    frame = runs.ls()
    assert list(frame.dataset) == ["bottle", "elpv", "elpv", "mvtec"] and list(frame.columns[[0, -1]]) == ["key", "commit"]
    assert list(runs.ls(dataset="elpv", seed=[1, 2]).seed) == [1] and runs.ls(method="none").empty
    with pytest.raises(DraError, match="unknown field to select by 'metod'. Did you mean 'method'"): runs.ls(metod="dra")
    status, out = call("ls")
    assert status == 0 and max(map(len, out.splitlines())) <= 120 and "4 records" in out and "mvtec/metal_nut known=scratch" in out and "bottle/b from a" in out
    assert "1 records" in call("ls", "--method", "devnet", "--shots", 1)[1]
    with pytest.raises(DraError, match="unknown method of the records 'devnt'. Did you mean 'devnet'"): call("ls", "--method", "devnt")
    runs.path(frame.key[0]).write_text("{")
    assert list(runs.ls().attrs["unreadable"]) == [frame.key[0]] and len(runs.ls()) == 3
    assert "not listed" in call("ls")[1]
    with pytest.raises(DraError, match="ends too early"): runs.export(runs.folder/"x.parquet")

def test_what_a_terminal_would_obey_is_not_printed(runs, call):
    spec = write(runs, RunSpec("evil\x1b[2J\n", method="\u202e", settings={"a": "\x07"}))
    runs.write_failure(RunSpec("\x1b[31m", seed=3), ValueError("\x1b[2J"))
    for args in (("ls",), ("ls", "--failed"), ("show", spec.key), ("diff", spec.key, runs.keys()[0]), ("verify",), ("show", RunSpec("\x1b[31m", seed=3).key)):
        out = call(*args)[1]
        assert not {"\x1b", "\u202e", "\x07"} & set(out)

def test_show(runs, call):
    key = runs.keys()[0]
    out = call("show", key[:6])[1]
    assert f"{key}\n" in out and "2 epochs, from" in out and "60 images" in out
    assert json.loads(call("show", key, "--json")[1]) == runs.read(key)
    runs.write_failure(RunSpec("elpv", seed=8), MemoryError("out of memory"), 2)
    assert "attempt 2: MemoryError: out of memory" in call("show", RunSpec("elpv", seed=8).key)[1]

def test_diff(runs, call, tmp_path):
    a, b = (RunSpec("elpv", seed=s, settings={"heads": ["seen"]}) for s in range(2))
    d = runs.diff(a.key, b.key[:8])
    assert d.fields[d.fields.part == "spec"][["field", "first", "second"]].to_numpy().tolist() == [["seed", 0, 1]]
    assert len(d.images) == 60 and np.allclose(np.sort(d.images.difference), np.sort(table(1).score - table(0).score, kind="stable"), atol=1e-6)
    there = Runs(tmp_path/"there")
    write(there, a, table(0).iloc[:-3].assign(score=lambda t: t.score + np.where(t.path == "images/001.png", np.float32(.25), 0).astype("float32")))
    d = runs.diff(a.key, a.key, there.folder)
    assert set(d.fields.part) == {"metrics"} and d.images.difference.isna().sum() == 3 and sorted(d.images.difference.abs())[-5:-3] == pytest.approx([.25]*2, abs=1e-6)
    out = call("diff", a.key, a.key, "--other", there.folder)[1]
    assert "57 images in both, 3 only in the first, 0 only in the second" in out and out.count("images/001.png") == 2
    assert "the records are equal" in (out := call("diff", a.key, a.key)[1]) and "equal to the last digit" in out

def test_rm(runs, call):
    spec = RunSpec("elpv", seed=0, settings={"heads": ["seen"]})
    runs.write_features(spec, with_features(table()))
    runs.path(spec, "ckpt").write_bytes(b"")
    (runs.folder/"notes.txt").write_text("mine")
    files = sorted(p.name for p in runs.folder.iterdir())
    with pytest.raises(DraError, match="is the beginning of 3 keys"):
        runs.path(f"{spec.key[:4]}{'0'*12}", "failed.json").write_text("{}")
        runs.path(f"{spec.key[:4]}{'1'*12}", "failed.json").write_text("{}")
        call("rm", spec.key[:4])
    for digit in "01": call("rm", spec.key[:4] + digit*12)
    with pytest.raises(DraError, match="no run in .* has a key that starts with 'zz'"): call("rm", spec.key, "zz")
    out = call("rm", spec.key[:10], "--dry-run")[1]
    assert sorted(p.name for p in runs.folder.iterdir()) == files and out.count("would remove") == 4
    out = call("rm", spec.key[:10])[1].splitlines()
    assert out[0].endswith(f"{spec.key}.json") and {p.name for p in runs.folder.iterdir()} == set(files) - {line.split("/")[-1] for line in out} and len(out) == 4
    assert len(runs.keys()) == 1 and (runs.folder/"notes.txt").exists()

def test_export(runs, call, tmp_path):
    write(runs, RunSpec("brainmri", method="devnet"), table(5).drop(columns=["score_pseudo"]).assign(score_other=np.float32(1)))
    assert "3 rows (runs)" in call("export", tmp_path/"a"/"runs.parquet")[1] and "60 rows (test images)" in call("export", tmp_path/"one.parquet", "--scores", "--dataset", "brainmri")[1]
    flat = pd.read_parquet(tmp_path/"a"/"runs.parquet").set_index("key")
    for key in runs.keys():
        record = runs.read(key)
        assert spec_from({k: flat.loc[key, k].item() if hasattr(flat.loc[key, k], "item") else flat.loc[key, k] for k in asdict(RunSpec("")) if k not in ("settings", "schedule")}
                         | dict(settings=json.loads(flat.loc[key, "settings"]), schedule={k: type(v)(flat.loc[key, f"schedule_{k}"]) for k, v in record["spec"]["schedule"].items()})).key == key
        assert flat.loc[key, "auroc"] == record["metrics"]["auroc"] and flat.loc[key, "timing_seconds"] == 12.5 and json.loads(flat.loc[key, "provenance_losses"]) == ORIGIN["losses"]
    assert runs.export(tmp_path/"scores.parquet", scores=True) == 180
    rows = pd.read_parquet(tmp_path/"scores.parquet")
    for key, part in rows.groupby("key"):
        scores = runs.scores(key).astype({c: float for c in runs.scores(key) if c.startswith("score")})
        pd.testing.assert_frame_equal(part[list(scores)].reset_index(drop=True), scores)
        assert part[["score_other", "score_pseudo"]].isna().all().sum() == 1
    with pytest.raises(DraError, match="cannot be written"): runs.export(runs.folder)
    (tmp_path/"file").write_text("")
    with pytest.raises(DraError, match="cannot be written"): runs.export(tmp_path/"file"/"x.parquet")
    with pytest.raises(DraError, match="no record to export"): Runs(tmp_path/"none").export(tmp_path/"x.parquet")
    assert not [p for p in tmp_path.rglob("*.part")]

def test_command_without_records(call, tmp_path):
    for args, message in ((["ls", "--out", str(tmp_path)], "no folder of records .*smoke/runs; pass the --out and --profile"), (["verify", "--profile", "cup"], "unknown profile 'cup'. Did you mean 'cpu'")):
        with pytest.raises(DraError, match=message): CliRunner().invoke(runs_app, args, catch_exceptions=False)
    (tmp_path/"smoke").mkdir()
    (tmp_path/"smoke"/"runs").mkdir()
    result = CliRunner().invoke(runs_app, ["verify", "--out", str(tmp_path)])
    assert result.exit_code == 0 and "0 records" in result.output

# ---- fuzzing: whatever lies there, a reader gives a value or a DraError

def fuzz(n): return settings(max_examples=n, deadline=10_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

SPEC = RunSpec("elpv", settings={"heads": ["seen"]})
BEFORE = {}  # one folder for all cases

def folder(tmp_path_factory):
    "The folder of all cases with one whole record, as it was before the case"
    if not BEFORE:
        runs = BEFORE["runs"] = Runs(tmp_path_factory.mktemp("fuzz"))
        write(runs, SPEC, table(n=6))
        runs.write_features(SPEC, with_features(table(n=6)))
        runs.write_failure(SPEC, ValueError("x"), 2)
        BEFORE.update({kind: runs.path(SPEC, kind).read_bytes() for kind in ("json", "parquet", "features.parquet", "failed.json")})
    for kind in ("json", "parquet", "features.parquet"): BEFORE["runs"].path(SPEC, kind).write_bytes(BEFORE[kind])
    BEFORE["runs"].path(SPEC, "failed.json").unlink(missing_ok=True)
    return BEFORE["runs"]

def survives(*calls):
    "Every call gives a value or a DraError"
    for c in calls:
        try: c()
        except DraError as e: assert str(e)

def command(runs, *args):
    "The command on the folder of all cases"
    error = CliRunner().invoke(runs_app, [*args, "--runs", str(runs.folder)]).exception
    if error is not None and not isinstance(error, SystemExit): raise error

ACTIONS = {  # what is done with a folder whose record is accepted; every case does two of them
    "verify": Runs.verify, "scores": lambda r: r.scores(SPEC), "diff": lambda r: r.diff(SPEC.key, SPEC.key), "export": lambda r: r.export(r.folder.parent/"export.parquet"),
    "export scores": lambda r: r.export(r.folder.parent/"export.parquet", scores=True), "spec": lambda r: spec_from(r.read(SPEC)["spec"]).key,
    **{f"command {n}": lambda r, args=args: command(r, *args) for n, args in {"ls": ("ls",), "show": ("show", SPEC.key), "diff": ("diff", SPEC.key, SPEC.key), "verify": ("verify",)}.items()}}
actions = st.permutations(sorted(ACTIONS)).map(lambda names: names[:2])

def everything(runs, names):
    "All that reads the JSON of a record; deeper readers only where that is accepted"
    survives(lambda: runs.read(SPEC), lambda: runs.frame([SPEC]), runs.ls)
    try: runs.read(SPEC)
    except DraError: return
    survives(*(lambda name=name: ACTIONS[name](runs) for name in names))

@st.composite
def edits(draw, data):
    "Bytes with some of them replaced, removed, repeated, or cut off"
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "repeat", "cut"]))
        if kind == "flip" and data: data[at] ^= draw(st.integers(1, 255))
        elif kind == "insert": data[at:at] = draw(st.binary(max_size=12) | st.sampled_from([b"[", b"{", b'"', b"1e999", b"NaN", b"-", b"\\ud800", b"9"*400, b"null", b"true"]))
        elif kind == "delete": del data[at:at + n]
        elif kind == "repeat": data[at:at] = data[at:at + n]
        elif kind == "cut": del data[at:]
    return bytes(data)

WHOLE = json.dumps(dict(schema=1, key=SPEC.key, spec=asdict(SPEC), metrics=dict(auroc=.5, ap=.5, auroc_seen=None, n_normal=6), timing=dict(seconds=1.), provenance=ORIGIN), indent=1).encode()

@fuzz(300)
@given(data=edits(WHOLE) | st.binary(max_size=60), names=actions)
def test_fuzz_record_bytes(tmp_path_factory, data, names):
    "Without a checksum, so that what can be parsed is not refused for that"
    runs = folder(tmp_path_factory)
    runs.path(SPEC).write_bytes(data)
    everything(runs, names)

values = st.recursive(st.none() | st.booleans() | st.integers() | st.integers(-10**400, 10**400) | st.floats() | st.text(max_size=8) | st.sampled_from(["elpv", "\ud800", "\x1b[2J", SPEC.key]),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["auroc", "lr", "seconds", "dataset", "heads"]), inner, max_size=3), max_leaves=6)

def places(value, path=()):
    "The ways to all parts of a structure"
    yield path
    for k in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()): yield from places(value[k], (*path, k))

@st.composite
def structures(draw, record):
    "A record in which some parts are replaced, removed or added"
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in places(record) if p] or [("a",)]))
        inner = record
        for k in way: inner = inner[k]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace": inner[last] = draw(values)
        elif kind == "add" and isinstance(inner, dict): inner[draw(st.text(max_size=8))] = draw(values)
        elif len(inner): del inner[last]
    return record

@fuzz(250)
@given(data=st.data(), signed=st.booleans(), names=actions)
def test_fuzz_record_structure(tmp_path_factory, data, signed, names):
    runs = folder(tmp_path_factory)
    record = data.draw(structures(json.loads(BEFORE["json"])))
    if signed: record["record_sha256"] = checksum(record)
    else: record.pop("record_sha256", None)
    runs.path(SPEC).write_text(json.dumps(record))
    everything(runs, names)

@fuzz(150)
@given(data=st.data(), features=st.booleans())
def test_fuzz_parquet(tmp_path_factory, data, features):
    "With and without the checksum in the record: the library must meet the bytes too"
    runs = folder(tmp_path_factory)
    kind = "features.parquet" if features else "parquet"
    runs.path(SPEC, kind).write_bytes(data.draw(edits(BEFORE[kind]) | st.binary(max_size=60)))
    if data.draw(st.booleans()): change(runs.path(SPEC), lambda r: r.pop("scores_sha256") and None)
    survives(lambda: runs.scores(SPEC), lambda: runs.features(SPEC), lambda: ACTIONS[data.draw(st.sampled_from(["verify", "diff", "export scores", "command show"]))](runs))

columns = st.sampled_from(["path", "label", "defect", "seen", "score", "score_seen", "score_new", "other"])
cells = st.sampled_from([None, "x", "", 0, 1, 2.5, float("nan"), float("inf"), True, b"bytes", [1.0, 2.0], pd.Timestamp(0), 2**62])

@fuzz(60)
@given(column=columns, value=cells, rows=st.integers(0, 12), drop=columns | st.none(), index=st.booleans(), names=actions)
def test_fuzz_tables(tmp_path_factory, column, value, rows, drop, index, names):
    "Well-formed parquet files that are no tables of scores"
    runs, t = folder(tmp_path_factory), table(n=6).iloc[:rows]
    t = t.assign(**{column: pd.Series([value]*len(t), index=t.index)})
    t.drop(columns=drop or [], errors="ignore").to_parquet(runs.path(SPEC, "parquet"), index=index)
    change(runs.path(SPEC), lambda r: r.pop("scores_sha256") and None)
    survives(lambda: runs.scores(SPEC))
    everything(runs, names)

@fuzz(100)
@given(data=st.data(), signed=st.booleans())
def test_fuzz_failures(tmp_path_factory, data, signed):
    runs = folder(tmp_path_factory)
    runs.path(SPEC).unlink()
    path = runs.path(SPEC, "failed.json")
    whole = BEFORE["failed.json"]
    if signed:
        record = data.draw(structures(json.loads(whole)))
        path.write_text(json.dumps(record | dict(record_sha256=checksum(record))))
    else: path.write_bytes(data.draw(edits(whole) | st.binary(max_size=60)))
    survives(lambda: runs.failure(SPEC), runs.failures, lambda: command(runs, *data.draw(st.sampled_from([("ls", "--failed"), ("show", SPEC.key), ("verify",)]))))
