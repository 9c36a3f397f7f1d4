"An interrupted training continues to the very same result; a checkpoint that cannot be trusted is refused."

import errno
import json
import os
import pickle
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_tiers, killed, python
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import SPLIT, STORE, Stop, new, short, small_store, stops, train, undisturbed
from safetensors.torch import save_file

from dra_nb.core import DraError
from dra_nb.evaluation.scoring import score, score_columns
from dra_nb.methods.io import save_method
from dra_nb.methods.registry import load_methods, method_schedule
from dra_nb.training import checkpoint as file
from dra_nb.training import loop
from dra_nb.training.checkpoint import read_checkpoint, remove_checkpoint, write_checkpoint
from dra_nb.training.compute import Compute
from dra_nb.training.loop import fit
from dra_nb.training.tuning import fine_tune

LEARNERS = sorted(name for name in load_methods() if method_schedule(name, {}).epochs)


def same(a, b):
    "Are two trained methods and their histories equal to the last bit?"
    (a, one), (b, two) = a, b
    assert not a.training and (one.losses, one.images) == (two.losses, two.images)
    states = a.state_dict(), b.state_dict()
    assert (
        list(states[0]) == list(states[1])
        and [k for k in states[0] if not torch.equal(states[0][k], states[1][k])] == []
    )
    scores = [score_columns(score(m, STORE, SPLIT.test, compute=Compute("cpu", "fp32"))) for m in (a, b)]
    for k in scores[0]:
        np.testing.assert_array_equal(scores[0][k], scores[1][k])


# what fails and at which of its calls; each time the training goes on from the checkpoint before
POINTS = [("training_step", 1), ("training_step", 3), ("training_step", 2)]
STAGES = {
    "ahl": [("begin", 1), ("training_step", 0), ("training_step", 3), ("training_step", 2)]
}  # between the stages, then in the second


WAYS = [*((n, "fp32") for n in LEARNERS), ("ahl", "bf16"), ("dra", "bf16")]


@pytest.mark.parametrize("name, precision", in_tiers(WAYS, [w for w in WAYS if w[0] != "ahl"]))
def test_interrupted_again_and_again(name, precision, tmp_path):
    path, before = tmp_path / "a.ckpt", torch.get_rng_state()
    for place, n in [*POINTS, *STAGES.get(name, []), ("finish", 0)]:
        with pytest.raises(Stop):
            train(name, stops(new(name), place, n), precision, checkpoint=path, checkpoint_every=1)
    last = stops(new(name), "training_step", 0)  # nothing is left to train
    same(train(name, last, precision, checkpoint=path, checkpoint_every=1), undisturbed(name, precision))
    assert torch.equal(before, torch.get_rng_state()) and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_every_method_was_meant():
    assert {"dra", "devnet", "flos", "saoe", "mlep", "kdad", "deep_sad", "minns", "multiclass", "ahl"} <= set(LEARNERS)
    method, history = train("patchcore")
    again, _ = train("patchcore", checkpoint=Path("never written"), checkpoint_every=1)
    assert torch.equal(method.memory, again.memory) and not Path("never written").exists()


@pytest.mark.slow
def test_tuning_goes_on(tmp_path):
    "A training on one category and a tuning on another, each with its own file"
    a, b, normals = tmp_path / "fit.ckpt", tmp_path / "tune.ckpt", replace(SPLIT, given=np.array([], int))

    def both(method, **kw):
        files = [kw | {"checkpoint": p} if kw else {} for p in (a, b)]
        _, first = train("dra", method, schedule=short("dra", 6), **files[0])
        return (
            method,
            first,
            fine_tune(method, STORE, normals, short("dra", 6), compute=Compute("cpu", "fp32"), **files[1]),
        )

    method, first, second = both(new("dra"))
    with pytest.raises(Stop):
        both(stops(new("dra"), "training_step", 12 + 3), checkpoint_every=1)
    assert a.exists() and b.exists()
    rest = stops(new("dra"), "training_step", 2)  # one epoch of two
    with pytest.raises(AssertionError):
        same((new("dra").eval(), first), (method, first))
    again, *histories = both(rest, checkpoint_every=1)
    same((again, histories[1]), (method, second))
    assert histories[0].losses == first.losses and rest.calls == 2


KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import interruptions as t
from dra_nb.training import checkpoint
name, place, n, calls = sys.argv[2], sys.argv[3], int(sys.argv[4]), []
def deadly(real):
    def call(*args, **kw):
        calls.append(1)
        if len(calls) == n:
            if place == "write": open(args[1], "wb").write(b"half of a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kw)
    return call
method = t.new(name)
if place == "write": checkpoint.save_file = deadly(checkpoint.save_file)
else: setattr(method, place, deadly(getattr(method, place)))
t.train(name, method, checkpoint=sys.argv[5], checkpoint_every=1)
"""


KILLED = [("dra", "write", 2, 1), ("ahl", "training_step", 10, 4)]


@pytest.mark.parametrize("name, place, n, epochs", in_tiers(KILLED, KILLED[:1]))
def test_killed(name, place, n, epochs, tmp_path):
    "SIGKILL in the second stage, and in the middle of a write; another process goes on"
    path = tmp_path / "a.ckpt"
    done = python(KILL, Path(__file__).parents[1], name, place, n, path)
    assert killed(done), done.stderr[-2000:]
    assert len(list(tmp_path.glob(".*.part"))) == (place == "write")
    method = stops(new(name), "training_step", 100)
    same(train(name, method, checkpoint=path, checkpoint_every=1), undisturbed(name))
    assert method.calls == 2 * (len(undisturbed(name)[1].losses) - epochs) and list(tmp_path.iterdir()) == [path]


def test_written_every_so_often(tmp_path, monkeypatch):
    written, real = [], loop.write_checkpoint
    monkeypatch.setattr(
        loop,
        "write_checkpoint",
        lambda path, state, facts: (written.append(len(state["history"]["losses"])), real(path, state, facts)),
    )
    for every, expected in ((0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])):
        path = tmp_path / f"{every}.ckpt"
        train("devnet", schedule=short("devnet", 5), checkpoint=path, checkpoint_every=every)
        assert written == expected and path.exists() == bool(expected)
        written.clear()
    with pytest.raises(DraError, match="every"):
        train("devnet", checkpoint_every=-1)
    remove_checkpoint(tmp_path / "0.ckpt")  # none is there
    remove_checkpoint(tmp_path / "1.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.ckpt", "9.ckpt"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The checkpoint of a training after its first epoch"
    path = tmp_path_factory.mktemp("one") / "one.ckpt"
    with pytest.raises(Stop):
        train("devnet", stops(new("devnet"), "training_step", 2), checkpoint=path, checkpoint_every=1)
    return path


OTHER = {
    "seed": dict(seed=1),
    "stages": dict(schedule=short("devnet", 4)),
    "precision": dict(precision="bf16"),
    "method": dict(method="flos"),
    "weights at the start": dict(weights_seed=1),
    "images": dict(store=small_store(1)),
    "rows of the split": dict(split=replace(SPLIT, given=SPLIT.given[:3])),
}


@pytest.mark.parametrize("what", OTHER)
def test_of_another_training(what, one):
    kept, call = (
        one.read_bytes(),
        dict(
            method="devnet",
            weights_seed=0,
            store=STORE,
            split=SPLIT,
            schedule=short("devnet"),
            precision="fp32",
            seed=0,
        )
        | OTHER[what],
    )
    method = stops(new(call.pop("method"), seed=call.pop("weights_seed")), "training_step")
    with pytest.raises(DraError, match=what) as e:
        compute = Compute("cpu", call.pop("precision"))
        fit(method, compute=compute, checkpoint=one, checkpoint_every=1, **call)
    assert str(one) in str(e.value) and "delete it" in str(e.value) and one.read_bytes() == kept
    named = str(e.value).partition("differs in ")[2].partition(". Repeat")[0].partition(" (an ")[0].split("; ")
    assert {n.partition(":")[0] for n in named} <= {what, "images"}  # another split shows other images


def test_a_method_that_was_interrupted_is_made_anew(one):
    method = new("devnet")
    with torch.no_grad():
        next(method.parameters()).add_(1)
    with pytest.raises(DraError, match="make a new one"):
        train("devnet", method, checkpoint=one)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_zip(evil):
    "What torch.save makes of an object"
    with tempfile.TemporaryDirectory() as d:
        torch.save({"stage": evil}, f"{d}/x")
        return Path(d, "x").read_bytes()


def foreign(name, whole, tmp):
    "Contents of a file that is no checkpoint, or was damaged"
    if name == "model":
        save_method(new("devnet"), tmp / "model")
        return (tmp / "model").read_bytes()
    if name == "other header":
        save_file({"a": torch.zeros(1)}, tmp / "other", metadata={file.HEADER: json.dumps({"facts": None})})
        return (tmp / "other").read_bytes()
    return {
        "empty": b"",
        "text": b"hello",
        "cut in the header": whole[:100],
        "cut in the numbers": whole[:-1],
        "longer": whole + b"x",
        "a number changed": whole[:-3] + b"abc",
        "pickle": pickle.dumps(Evil(tmp / "was here")),
        "torch.save": torch_zip(Evil(tmp / "was here")),
        "huge header": b"\xff" * 8 + whole[8:],
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "text",
        "cut in the header",
        "cut in the numbers",
        "longer",
        "a number changed",
        "pickle",
        "torch.save",
        "huge header",
        "model",
        "other header",
    ],
)
def test_not_a_checkpoint(name, one, tmp_path):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(foreign(name, one.read_bytes(), tmp_path))
    with pytest.raises(DraError) as e:
        train("devnet", stops(new("devnet"), "training_step"), checkpoint=path, checkpoint_every=1)
    assert str(path) in str(e.value) and "delete it to start" in str(e.value)
    assert path.exists() and not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    "change",
    [
        dict(stage=7),
        dict(stage="x"),
        dict(tensors={}),
        dict(random=[]),
        dict(parts={"optimiser": {}}),
        dict(parts={"evil": {}}),
        dict(history={}),
    ],
)
def test_right_facts_wrong_state(change, one, tmp_path):
    "A whole file with the right facts whose state does not fit: an error of our own"
    from safetensors import safe_open

    with safe_open(one, "pt") as f:
        facts = json.loads(f.metadata()[file.HEADER])["facts"]
    write_checkpoint(tmp_path / "bad.ckpt", read_checkpoint(one, facts) | change, facts)
    with pytest.raises(DraError, match="cannot be continued"):
        train("devnet", checkpoint=tmp_path / "bad.ckpt")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage(data):
    "Bytes changed, taken out or put in: the same state, or an error of our own"
    with tempfile.TemporaryDirectory() as d:
        path, state = Path(d, "a.ckpt"), {"a": torch.arange(5), "b": [1, {2: torch.ones(2, 2)}]}
        write_checkpoint(path, state, {"seed": 0})
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            i, new = data.draw(st.integers(0, len(raw))), data.draw(st.binary(max_size=3))
            raw[i : i + data.draw(st.integers(0, 9))] = new
        path.write_bytes(raw)
        try:
            got = read_checkpoint(path, {"seed": 0})
        except DraError as e:
            assert str(path) in str(e)
        else:
            assert torch.equal(got["a"], state["a"]) and torch.equal(got["b"][1][2], state["b"][1][2])


def test_disk_full(tmp_path, monkeypatch):
    "The training ends with an error, the checkpoint before stays, and with room again it continues from there"
    path, real, calls = tmp_path / "a.ckpt", file.save_file, []

    def full(tensors, part, metadata):
        calls.append(1)
        if len(calls) < 2:
            return real(tensors, part, metadata=metadata)
        part.write_bytes(b"as much as fits")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file, "save_file", full)
    with pytest.raises(DraError, match="cannot be written.*No space left.*one before is kept.*Make room"):
        train("devnet", checkpoint=path, checkpoint_every=1)
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    method = stops(new("devnet"), "training_step", 4)
    same(train("devnet", method, checkpoint=path, checkpoint_every=1), undisturbed("devnet"))


def test_file_size_limit(tmp_path):
    "A real write that fails half-way"
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, {"a": torch.zeros(10)}, {})
    kept, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(DraError, match="cannot be written.*one before is kept"):
            write_checkpoint(path, {"a": torch.zeros(2**20)}, {})
        with pytest.raises(DraError, match="cannot be written.*none before"):
            write_checkpoint(tmp_path / "b.ckpt", {"a": torch.zeros(2**20)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept and list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite(tmp_path):
    "It names head, step, epoch and stage, at the end of the epoch; what was written before is of a sound training"
    path, method = tmp_path / "a.ckpt", stops(new("dra"), "training_step", 100)
    step = method.training_step

    def broken(batch):
        losses = step(batch)
        return losses | {"residual": losses["residual"] * float("nan")} if method.calls >= 5 else losses

    method.training_step = broken
    with pytest.raises(DraError, match="head 'residual' is nan at epoch 1, step 1 of stage 'train'"):
        train("dra", method, schedule=replace(short("dra"), steps=3, epochs=2), checkpoint=path, checkpoint_every=1)
    assert method.calls == 6  # the epoch was not stopped half-way: nobody looks at a loss within it
    train(
        "dra", schedule=replace(short("dra"), steps=3, epochs=2), checkpoint=path, checkpoint_every=1
    )  # goes on after epoch 0


def test_bars_only_where_asked(tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    with pytest.raises(Stop):
        train("devnet", stops(new("devnet"), "training_step", 3), checkpoint=path, checkpoint_every=1)
    assert capsys.readouterr().err == ""
    train("devnet", progress="here", checkpoint=path, checkpoint_every=1)
    lines = capsys.readouterr().err.splitlines()  # stderr is no terminal here, so a bar is lines
    said = [o.split(" step")[0] for o in lines]
    assert said[:2] == ["here: 0 of 6", "here: 3 of 6"]  # after the two steps of the checkpoint, and at once
    assert said[-1] == "here: 6 of 6"
