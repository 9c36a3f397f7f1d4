"A detector from anybody's images: whatever they come as, saved and loaded, with what is broken, missing or malicious."
import json, os, pickle, tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import mvtec_folder, picture, python, succeeded
from dra_nb.core import DraError
from dra_nb.data.sources import read_labelled, stream
from dra_nb.methods.method import Schedule, load_methods, load_method
from dra_nb.training.detector import AnomalyDetector, Settings, hold_out
from dra_nb.training.threshold import Rule, choose_threshold

QUICK = dict(image_size=64, backbone="resnet18_stage2", weights=None, epochs=1, steps=2, batch=9, device="cpu", precision="fp32")

def images(kind, n, seed=0, size=64):
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(picture(kind, rng, size)) for _ in range(n)])

GOOD, DENTS, SCRATCHES = images("good", 24), images("dent", 4, 1), images("scratch", 4, 2)

def write(folder, arrays):
    "Images as PNG files; their paths"
    folder.mkdir(parents=True, exist_ok=True)
    for i, a in enumerate(arrays): Image.fromarray(a).save(folder/f"{i:03}.png")
    return sorted(str(p) for p in folder.iterdir())

def says(word, f, *args, **kwargs):
    with pytest.raises(DraError, match=word) as caught: f(*args, **kwargs)
    return str(caught.value)

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with good/, bad/dent and bad/scratch"
    root = tmp_path_factory.mktemp("parts")
    write(root/"good", GOOD), write(root/"bad/dent", DENTS), write(root/"bad/scratch", SCRATCHES)
    return root

@pytest.fixture(scope="module")
def detector(folder): return AnomalyDetector("dra", **QUICK).fit(folder/"good", folder/"bad")

@pytest.fixture(scope="module")
def file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")/"parts.safetensors"
    detector.save(path)
    return path

def test_learns_from_whatever_images_come_as(folder, detector):
    good, bad = sorted(map(str, (folder/"good").iterdir())), {k: sorted(map(str, (folder/"bad"/k).iterdir())) for k in ("dent", "scratch")}
    catalog = read_labelled(mvtec_folder(folder.parent/"other"))
    reference = detector.score_samples(GOOD[:3])
    for normal, anomalies in ((folder/"good", folder/"bad"), (good[::-1], bad), (GOOD, {"dent": DENTS, "scratch": folder/"bad/scratch"})):
        again = AnomalyDetector("dra", **QUICK).fit(normal, anomalies)
        assert again.summary_["anomalies"] == {"dent": 4, "scratch": 4} and again.summary_["normals"] + again.summary_["held_out"] == 24
        np.testing.assert_array_equal(again.score_samples(GOOD[:3]), reference)  # the same images, so the same detector
    whole = AnomalyDetector("dra", **QUICK).fit(catalog)
    assert (whole.summary_["normals"], whole.summary_["held_out"]) == (12, 4)  # its test normals are held out

def test_arrays_and_files_have_the_same_scores(folder, detector):
    reference, good = detector.score_samples(folder/"good"), sorted(map(str, (folder/"good").iterdir()))
    for source in (good, GOOD, [Path(o) for o in good], list(GOOD), [Image.fromarray(a) for a in GOOD], iter(good), pd.DataFrame({"path": good, "box": None})):
        np.testing.assert_allclose(detector.score_samples(source), reference, rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(GOOD, batch=1), reference, rtol=1e-4, atol=1e-5)
    grey = GOOD[..., 0]
    np.testing.assert_array_equal(detector.score_samples(grey), detector.score_samples(np.repeat(grey[..., None], 3, -1)))

def test_signs(detector):
    both = np.concatenate([GOOD[:4], DENTS])
    scores = detector.score_samples(both)
    np.testing.assert_array_equal(detector.decision_function(both), scores - detector.threshold_.value)
    np.testing.assert_array_equal(detector.predict(both), (scores > detector.threshold_.value).astype(int))
    held = np.asarray(detector.threshold_.normal)
    np.testing.assert_allclose(detector.p_values(both), [(1 + (held >= s).sum())/(1 + len(held)) for s in scores])

@pytest.mark.parametrize("n", [0, 1, 8])
@pytest.mark.parametrize("name", sorted(load_methods()))
def test_every_method_with_none_one_and_many_anomalies(name, n, tmp_path):
    d = AnomalyDetector(name, **QUICK, **{"pool": 24} if name == "ahl" else {})
    anomalies = {"dent": DENTS, "scratch": SCRATCHES} if n == 8 else DENTS[:1] if n else None
    extra = {"outliers": images("good", 4, 5)} if name == "saoe" else {}
    able = load_methods()[name].supervision == "normals only" or name in ("dra", "multiclass", "saoe")
    if not n and not able:
        message = says("learns from given anomalies, and there are none", d.fit, GOOD, None, **extra)
        assert "patchcore" in message and "dra" in message
        return
    d.fit(GOOD, anomalies, **extra)
    scores = d.score_samples(GOOD[:4])
    assert np.isfinite(scores).all() and len(d.report_.frame) == 1 + (2 if n == 8 else n)
    d.save(tmp_path/"d.safetensors")
    np.testing.assert_array_equal(AnomalyDetector.load(tmp_path/"d.safetensors", "cpu").score_samples(GOOD[:4]), scores)
    if load_methods()[name].maps: assert d.score_map(GOOD[0]).shape == (64, 64)
    else: says("score map", d.score_map, GOOD[0])

def test_without_anomalies_it_says_what_it_does():
    d = AnomalyDetector("dra", **QUICK).fit(GOOD)
    assert "no seen head" in str(d.report_) and list(d.method_.heads) == ["pseudo", "residual", "normality"] and d.summary_["schedule"]["anomalies"] == 0
    assert d.get_params() == Settings("dra", **QUICK).get_params()  # its settings stay what they were
    says("seen head learns", AnomalyDetector("dra", heads=("seen", "pseudo"), **QUICK).fit, GOOD)
    says("outliers=", AnomalyDetector("saoe", **QUICK).fit, GOOD, DENTS)

def test_another_process_scores_the_same(file, folder, detector):
    code = "import sys; from dra_nb.training.detector import AnomalyDetector as A; d = A.load(sys.argv[1], 'cpu'); print(*(s.hex() for s in map(float, d.score_samples(sys.argv[2])))); print(d.report_)"
    first, _, rest = succeeded(python(code, file, folder/"good")).stdout.partition("\n")
    np.testing.assert_array_equal([float.fromhex(s) for s in first.split()], detector.score_samples(folder/"good"))
    assert rest.strip() == str(detector.report_).strip()

def test_the_file_is_a_method_too(file, detector):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(load_method(file).score(x), detector.method_.score(x), rtol=1e-4, atol=1e-5)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_scores_the_same(file, folder, detector):
    there = AnomalyDetector.load(file, "cuda").score_samples(folder/"good")
    here = detector.score_samples(folder/"good")
    np.testing.assert_allclose(there, here, rtol=1e-2, atol=1e-2*np.abs(here).max())  # TF32 convolutions

def rewritten(file, path, tensors=None, **changes):
    "A copy of a detector's file with other metadata: paths of keys, joined by '__', and values"
    with safe_open(file, "pt") as f: meta, old = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}
    config = json.loads(meta["detector"])
    for key, value in changes.items():
        *inner, last = key.split("__")
        at = config
        for k in inner: at = at[k]
        at[last] = value
    meta["detector"] = json.dumps(config)
    save_file(old if tensors is None else tensors(old), path, metadata=meta)
    return path

def test_files_that_are_not_what_they_seem(file, tmp_path):
    load, p = AnomalyDetector.load, tmp_path/"x.safetensors"
    says("newer", load, rewritten(file, p, schema=99))
    says("finite", load, rewritten(file, p, threshold__value=float("inf")))
    says("damaged", load, rewritten(file, p, threshold__normal=["__import__('os')"]))
    says("holds a dra and describes", load, rewritten(file, p, params__method="devnet"))
    says("unknown setting", load, rewritten(file, p, params__evil=1))
    says("image_size", load, rewritten(file, p, params__image_size=10**9))
    says("unknown way", load, rewritten(file, p, threshold__rule__by="os.system"))
    says("not a detector", load, rewritten(file, p, groups=[{"x": 1}]))
    says("not a detector", load, rewritten(file, p, summary={}))
    says("not a detector", load, rewritten(file, p, params=[]))
    says("fit its own settings", load, rewritten(file, p, lambda t: {k: v for k, v in t.items() if k != "heads.seen.classify.weight"}))
    says("not finite", load, rewritten(file, p, lambda t: t | {"heads.seen.classify.weight": t["heads.seen.classify.weight"]*float("nan")}))
    says("damaged", load, rewritten(file, p, lambda t: t | {"reference_9": torch.zeros(2, 2), "more": torch.zeros(2)}))
    says("damaged", load, rewritten(file, p, lambda t: t | {"reference_0": torch.zeros(2, 2)}))
    for n in (0, 7, 100, 5000):
        p.write_bytes(file.read_bytes()[:n])
        says("not a detector", load, p)
    p.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")  # a pickle
    says("not a detector", load, p)
    assert not os.path.exists("/tmp/pwned")
    says("does not exist", load, tmp_path/"gone")
    says("is a folder", load, tmp_path)

def test_huge_settings_take_no_memory(tmp_path):
    AnomalyDetector("deep_sad", **QUICK).fit(GOOD, DENTS).save(tmp_path/"d.safetensors")
    with safe_open(tmp_path/"d.safetensors", "pt") as f: meta, tensors = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}
    for part in ("dra_nb", "detector"):
        config = json.loads(meta[part])
        config.get("params", config.get("settings", {})).update(dimensions=10**9)
        meta[part] = json.dumps(config)
    save_file(tensors, tmp_path/"huge.safetensors", metadata=meta)
    says("does not fit its own settings", AnomalyDetector.load, tmp_path/"huge.safetensors")

def test_a_broken_image_in_the_middle_of_a_stream(folder, detector, tmp_path):
    good = sorted(map(str, (folder/"good").iterdir()))
    (tmp_path/"text.png").write_text("no picture")
    (tmp_path/"half.png").write_bytes(Path(good[0]).read_bytes()[:200])
    mixed = [good[0], tmp_path/"text.png", good[1], tmp_path/"half.png", tmp_path/"gone.png", 5, good[2]]
    found = list(detector.score_stream(iter(mixed), batch=3))
    assert [bool(o.error) for o in found] == [False, True, False, True, True, True, False] and [o.name for o in found[:2]] == [good[0], str(tmp_path/"text.png")]
    np.testing.assert_allclose([o.score for o in found if not o.error], detector.score_samples(good[:3]), rtol=1e-5)
    assert all(o.score is None and o.anomaly is None for o in found if o.error)
    table = detector.score_table(mixed)
    assert table.error.ne("").sum() == 4 and table.score.notna().sum() == 3
    assert "4 of 7" in says("have no score", detector.predict, mixed)
    os.mkdir(tmp_path/"only")
    (tmp_path/"only/x.png").write_text("no picture")
    assert [bool(o.error) for o in detector.score_stream(tmp_path/"only")] == [True]
    result = detector.evaluate(good[:4] + [str(tmp_path/"text.png")], folder/"bad")
    assert "1 of 13 images could not be read and are not counted: " + str(tmp_path/"text.png") in str(result) and result.frame.n.sum() == 4 + 8
    assert [o.name for o in result.unreadable] == [str(tmp_path/"text.png")] and "text.png" in result.unreadable[0].error and not any("text.png" in o for o in result.notes)
    assert detector.report_.unreadable == []

def test_many_broken_images_are_counted_and_the_first_are_named(folder, detector, tmp_path):
    good = sorted(map(str, (folder/"good").iterdir()))
    for i in range(8): (tmp_path/f"{i}.png").write_text("no picture")
    result = detector.evaluate(good[:4] + sorted(map(str, tmp_path.iterdir())), folder/"bad")
    named = ", ".join(str(tmp_path/f"{i}.png") for i in range(5))
    assert f"8 of 20 images could not be read and are not counted: {named} and 3 more (the image {tmp_path/'0.png'} cannot be used (cannot identify image file))" in str(result)
    assert len(result.unreadable) == 8 and result.metrics == detector.evaluate(good[:4], folder/"bad").metrics

def test_broken_images_are_all_named_before_anything_is_trained(folder, tmp_path, monkeypatch):
    import dra_nb.training.detector as module
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))
    good = sorted(map(str, (folder/"good").iterdir()))
    for name in ("good", "bad/dent", "more"): (tmp_path/name).mkdir(parents=True)
    for i in range(9): (tmp_path/f"good/{i}.png").write_text("no picture")
    (tmp_path/"bad/dent/x.png").write_bytes(Path(good[0]).read_bytes()[:200])
    write(tmp_path/"bad/dent", DENTS[:2]), (tmp_path/"more/y.png").write_text("no picture")
    message = says("11 images cannot be read, so nothing was trained; restore or replace the files, or leave them out", AnomalyDetector("dra", **QUICK).fit,
                   iter(good + sorted(map(str, (tmp_path/"good").iterdir()))), tmp_path/"bad", validation=([*good[:2], tmp_path/"more/y.png"], None))
    for i in range(9): assert f"normals: the image {tmp_path}/good/{i}.png cannot be used" in message
    assert f"given anomalies: the image {tmp_path}/bad/dent/x.png" in message and f"validation normals: the image {tmp_path}/more/y.png" in message
    assert message.count("restore or replace") == 1 and len(message.splitlines()) == 12
    assert "image 1: an image is a path" in says("1 image cannot be read.*leave it out", AnomalyDetector("dra", **QUICK).fit, [GOOD[0], 5, GOOD[1]], DENTS)
    assert "outliers: " in says("1 image cannot be read", AnomalyDetector("saoe", **QUICK).fit, GOOD, DENTS, outliers=tmp_path/"more")
    for wrong in (GOOD/255, tmp_path/"gone"): assert "cannot be read, so" not in says(".", AnomalyDetector("dra", **QUICK).fit, wrong, DENTS)  # not the fault of a file

def test_a_title_counts_in_words(detector):
    assert "normals and 8 anomalies (dent 4, scratch 4) in" in detector.report_.title
    for n, words in ((0, "no anomalies in"), (1, "1 anomaly in"), (3, "3 anomalies in")):
        assert f"normals and {words}" in AnomalyDetector("patchcore", **QUICK).fit(GOOD, DENTS[:n]).report_.title
    assert detector.evaluate(GOOD[:1], DENTS[:1]).title == "dra, tested on 1 normal and 1 anomaly"

def test_a_threshold_is_not_chosen_on_what_can_be_read_alone(folder, tmp_path):
    d = AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    before = d.threshold_
    (tmp_path/"x.png").write_text("no picture")
    assert str(tmp_path/"x.png") in says("1 image cannot be read, so no threshold was chosen", d.calibrate, [*sorted(map(str, (folder/"good").iterdir())), tmp_path/"x.png"])
    assert d.threshold_ == before

def test_learning_rate(folder, tmp_path):
    for wrong in (0, -1e-3, float("inf"), float("nan"), "fast", True): says("lr is a learning rate, a number above 0 such as 0.0002", AnomalyDetector, lr=wrong)
    says("such as 0.0001", AnomalyDetector().set_params, method="deep_sad", lr=0)
    usual, slow = (AnomalyDetector("devnet", lr=lr, **QUICK).fit(GOOD, DENTS) for lr in (None, 1e-8))
    assert usual.summary_["schedule"]["lr"] == 2e-4 and slow.summary_["schedule"]["lr"] == 1e-8 and usual.get_params()["lr"] is None
    start = AnomalyDetector("devnet", schedule=Schedule(epochs=1, steps=1, batch=9, anomalies=3, lr=1e-12), **QUICK | dict(epochs=None, steps=None, batch=None)).fit(GOOD, DENTS)
    moved = [max((a - b).abs().max().item() for a, b in zip(d.method_.backbone.parameters(), start.method_.backbone.parameters())) for d in (usual, slow)]
    assert moved[0] > 1e-4 > 1e-6 > moved[1]  # Adam moves a weight by the rate at a step
    slow.save(tmp_path/"d.safetensors")
    again = AnomalyDetector.load(tmp_path/"d.safetensors", "cpu")
    assert again.lr == 1e-8 and again.summary_["schedule"]["lr"] == 1e-8
    over = AnomalyDetector("devnet", lr=3e-4, schedule=Schedule(epochs=1, steps=1, lr=1e-3), **QUICK).fit(GOOD, DENTS)
    assert over.summary_["schedule"]["lr"] == 3e-4

def test_the_middles_of_patches_are_measured_once_for_a_stream(detector, monkeypatch):
    import copy
    import dra_nb.training.heatmaps as heatmaps
    measure, sizes, d = heatmaps.patch_shift, [], copy.copy(detector)
    monkeypatch.setattr(heatmaps, "patch_shift", lambda backbone, size, device="cpu": sizes.append(size) or measure(backbone, size, device))
    maps = [o.map for o in d.score_stream(GOOD[:12], batch=4, maps="score")]
    assert sizes == [(64, 64)]
    np.testing.assert_array_equal(d.score_map(GOOD[:4]), np.stack(maps[:4]))
    d.score_map(GOOD[:2], "seen"), d.score_map(GOOD[:2], "gradient")
    assert len(sizes) == 1
    fresh = heatmaps.heatmaps(d.method_, torch.from_numpy(GOOD[:4].transpose(0, 3, 1, 2).copy()), device="cpu", precision="fp32")
    np.testing.assert_array_equal(fresh, np.stack(maps[:4]))
    d.fit(GOOD, DENTS).score_map(GOOD[0])
    assert len(sizes) == 3  # another method: measured anew (the second was the direct call)

def test_results_come_while_images_come(detector):
    "The stream does not wait for its end, and holds a batch, not all"
    asked = []
    def camera():
        for i in range(1000):
            asked.append(i)
            yield GOOD[i % 24]
    results = detector.score_stream(camera(), batch=4, workers=1)
    for _ in range(9): next(results)
    assert len(asked) < 20
    results.close()

def test_memory_does_not_grow_with_the_folder(detector):
    big = np.zeros((600, 600, 3), np.uint8)
    def peak(n):
        tracemalloc.start()
        for _ in detector.score_stream((big + i % 7 for i in range(n)), batch=8, workers=1): pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak(8)
    assert peak(160) < 1.3*peak(40)

def test_wrong_images(folder, tmp_path, detector):
    fit = lambda *a, **k: AnomalyDetector("dra", **QUICK).fit(*a, **k)
    (tmp_path/"empty").mkdir()
    write(tmp_path/"all/anomalies", DENTS), write(tmp_path/"mixed/good", GOOD[:2]), write(tmp_path/"mixed/dent", DENTS)
    says("holds no image", fit, tmp_path/"empty")
    says("holds no image", fit, folder/"good", tmp_path/"empty")
    says("does not exist", fit, tmp_path/"gone")
    says("no normal images", fit, tmp_path/"all")
    says("count as anomalies", fit, folder/"good", tmp_path/"mixed")
    says("among the normals and the given anomalies", fit, folder/"good", folder/"good")
    says("among the normals and the validation normals", fit, folder/"good", folder/"bad", validation=(folder/"good", folder/"bad"))
    says("holds anomalies itself", fit, mvtec_folder(tmp_path/"whole"), folder/"bad")
    says("at least 2", fit, GOOD[:1], DENTS)
    says("n_reference", fit, GOOD[:3], DENTS)
    says("one image", fit, GOOD[0])
    says("no image", fit, GOOD/255)
    says("empty", fit, [])
    assert "no anomalies were given" in str(fit(GOOD, []).report_)  # none is a number of anomalies, too
    (tmp_path/"bad.png").write_text("no picture")
    says("bad.png cannot be used", fit, [*sorted(map(str, (folder/"good").iterdir())), tmp_path/"bad.png"])
    for call in (detector.score_samples, lambda o: list(detector.score_stream(o))): says("no images", call, tmp_path/"empty")
    says("does not exist", detector.predict, tmp_path/"gone")
    says("learnt nothing", AnomalyDetector().score_samples, GOOD)
    says("at least 1", detector.score_stream, GOOD, batch=0)
    says("unknown kind of heat map", detector.score_map, GOOD[0], kind="hete")

def test_two_categories_are_two_detectors(tmp_path):
    mvtec_folder(tmp_path/"set/a", 3, 1, {"x": 1}), mvtec_folder(tmp_path/"set/b", 3, 1, {"x": 1})
    says("2 categories", AnomalyDetector("dra", **QUICK).fit, read_labelled(tmp_path/"set/a").assign(category=["a", "b"]*2 + ["a"]))

def test_threshold_of_a_detector(folder):
    validation = (images("good", 8, 7), {"dent": images("dent", 3, 8), "ink": images("scratch", 3, 9)})
    d = AnomalyDetector("dra", threshold="f1", **QUICK).fit(folder/"good", folder/"bad", validation=validation)
    assert d.summary_["normals"] == 24 and len(d.threshold_.normal) == 8 and len(d.threshold_.anomaly) == 6  # nothing has to be held out
    roles = d.report_.frame.set_index("images").role.astype(str).groupby(level=0).agg(" ".join)
    assert "validation, seen" in roles["dent"] and "validation, unseen" in roles["ink"]
    unnamed = AnomalyDetector("dra", **QUICK).fit(folder/"good", DENTS).evaluate(folder/"good", folder/"bad")
    assert set(unnamed.frame.role) == {"tested"}  # without the names of classes nobody knows what was seen
    n, a = d.score_samples(validation[0]), np.concatenate([d.score_samples(v) for v in validation[1].values()])
    assert d.threshold_.value == pytest.approx(choose_threshold(Rule("f1"), n, a).value)  # scores of other batches may differ in the last digits
    assert d.calibrate(threshold="cost", miss=np.int64(100)).threshold_.value == pytest.approx(choose_threshold(Rule("cost", miss=100), n, a).value)
    d.save(folder.parent/"cost.safetensors")
    assert AnomalyDetector.load(folder.parent/"cost.safetensors", "cpu").threshold_ == d.threshold_
    assert d.calibrate(fpr=.25, threshold="fpr").threshold_.value == pytest.approx(np.sort(n)[-2]) and d.get_params()["fpr"] == .25
    says("validation=", AnomalyDetector("dra", threshold="cost", **QUICK).fit, folder/"good", folder/"bad")
    says("cannot tell a false-alarm rate of 0.001", AnomalyDetector("dra", fpr=.001, **QUICK).fit, folder/"good", folder/"bad")
    says("cannot tell", d.calibrate, fpr=.01)
    assert d.threshold_.rule.fpr == .25  # a refused one changes nothing
    loose = AnomalyDetector("dra", **QUICK).fit(folder/"good", folder/"bad")
    assert "too few for a false-alarm rate of 5 %" in str(loose.report_) and loose.threshold_.value == max(loose.threshold_.normal)
    free = AnomalyDetector("patchcore", threshold="f1", **QUICK).fit(folder/"good", folder/"bad")
    assert len(free.threshold_.anomaly) == 8 and set(free.report_.frame.role) == {"held out", "not trained on"}  # not trained on, so they may choose

def test_held_out_normals_are_not_trained_on(folder):
    "Replacing a held-out image changes no weight, replacing any other does"
    d = AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    names = np.random.RandomState((0, 2)).permutation(24)[:hold_out(24, Rule())]
    for i, same in ((names[0], True), (np.setdiff1d(np.arange(24), names)[0], False)):
        other = GOOD.copy()
        other[i] = 255 - other[i]
        again = AnomalyDetector("patchcore", **QUICK).fit(other)
        assert (again.method_.memory.shape == d.method_.memory.shape and torch.equal(again.method_.memory, d.method_.memory)) == same

def test_left_out_classes_and_parts(folder):
    d = AnomalyDetector("devnet", **QUICK).fit(folder/"good", folder/"bad", check=("unseen", "seen"))
    left = d.report_.frame[d.report_.frame.role.str.startswith("left out")]
    assert list(left.images) == ["dent", "scratch", "part 1", "part 2", "part 3"] and left.n.tolist() == [4, 4, 3, 3, 2]
    for group in d.groups_[-5:]: assert len(group.normal) == d.summary_["held_out"]
    alone = AnomalyDetector("devnet", **QUICK | dict(seed=0)).fit(folder/"good", {"scratch": folder/"bad/scratch"})
    np.testing.assert_allclose(alone.score_samples(folder/"bad/dent"), d.groups_[-5].scores, rtol=1e-4, atol=1e-5)  # what a detector that never saw dents says
    before = left.above.tolist()
    d.calibrate(fpr=.5)
    after = d.report_.frame[d.report_.frame.role.str.startswith("left out")].above.tolist()
    assert all(a >= b for a, b in zip(after, before))
    says("needs two or more", AnomalyDetector("devnet", **QUICK).fit, folder/"good", folder/"bad/dent", check="unseen")
    says("unknown check", AnomalyDetector("devnet", **QUICK).fit, folder/"good", folder/"bad", check="unsen")

def test_a_new_threshold_that_cannot_judge_what_was_left_out(folder, tmp_path):
    "is reported without it, saved and loaded; a rule that can brings it back"
    d = AnomalyDetector("devnet", **QUICK).fit(folder/"good", folder/"bad", check="unseen")
    rows, more = str(d.report_), (images("good", 60, 7), images("dent", 4, 8))
    assert d.report_.frame.role.tolist().count("left out, unseen") == 2
    for new in (dict(threshold="f1"), dict(threshold=d.threshold_.value), dict(threshold="fpr", fpr=.02)):
        d.calibrate(*more, **new)
        assert "left out, unseen" not in str(d.report_) and "what was left out is not shown" in str(d.report_)
        d.save(tmp_path/"d.safetensors")
        assert str(AnomalyDetector.load(tmp_path/"d.safetensors", "cpu").report_) == str(d.report_)
    d.calibrate(fpr=.2)
    assert d.report_.frame.role.tolist().count("left out, unseen") == 2 and "is not shown" not in str(d.report_)

def test_what_cannot_be_is_refused_before_anything_is_trained(folder, monkeypatch):
    import dra_nb.training.detector as module
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("it trained"))
    fit = lambda *a, method="dra", **k: AnomalyDetector(method, **QUICK | {o: k.pop(o) for o in ("threshold", "holdout") if o in k}).fit(*a, **k)
    says("another unit", fit, GOOD, folder/"bad", threshold=1.5, check="unseen")
    says("there are none; give more normals", fit, GOOD, DENTS, threshold="f1", holdout=0.0, validation=([], SCRATCHES))
    for threshold in ("fpr", 1.5): says("leave out one of them", fit, GOOD, DENTS, threshold=threshold, holdout=.5, validation=(images("good", 4, 7), SCRATCHES))
    says("leave out one of them", fit, mvtec_folder(folder.parent/"divided"), holdout=.5)
    with pytest.raises(pytest.fail.Exception): fit(GOOD, DENTS, holdout=.5, validation=([], SCRATCHES))  # these do train
    with pytest.raises(pytest.fail.Exception): fit(GOOD, DENTS, holdout=0.0, validation=(images("good", 4, 7), SCRATCHES))

def test_a_method_without_anomalies_says_that_nothing_was_left_out(folder):
    d = AnomalyDetector("patchcore", **QUICK).fit(folder/"good", folder/"bad", check=("seen", "unseen"))
    assert "check=seen+unseen left nothing out: patchcore does not learn from anomalies" in str(d.report_)
    few = AnomalyDetector("patchcore", schedule=Schedule(epochs=1, steps=1, batch=9, anomalies=2), **QUICK | dict(epochs=None, steps=None, batch=None)).fit(GOOD)
    assert few.summary_["schedule"]["anomalies"] == 0 and few.summary_["schedule"]["batch"] == 7

def test_an_image_is_one_thing_and_once(folder, tmp_path, detector):
    fit, good = lambda *a, **k: AnomalyDetector("dra", **QUICK).fit(*a, **k), sorted(map(str, (folder/"good").iterdir()))
    assert f"{good[0]} is there 2 times among the normals" in says("name each image once", fit, good*2, DENTS)
    (tmp_path/"l.csv").write_text("path,label,box,split\n" + "".join(f'{o},0,"0,0,32,32",test\n{o},0,"32,0,64,32",train\n' for o in good[:3]) + f"{folder}/bad/dent/000.png,1,,\n")
    assert f"{good[0]} is among the normals and the validation normals" in says("or any crop of it", fit, good, validation=str(tmp_path/"l.csv"))
    crops = read_labelled(tmp_path/"l.csv")
    tiles = AnomalyDetector("patchcore", **QUICK).fit(crops[crops.label == 0])  # of a file, for one purpose
    assert tiles.summary_["normals"] + tiles.summary_["held_out"] == 6

def test_images_that_were_met_before_are_no_judges(folder, tmp_path):
    "Whatever their files are called; what nothing rests on may judge"
    fresh = images("good", 6, 7), images("dent", 3, 8)
    copies = write(tmp_path/"copies", GOOD[:5])
    d = AnomalyDetector("dra", **QUICK).fit(folder/"good", folder/"bad", validation=(images("good", 6, 9), images("scratch", 2, 9)))
    met = lambda normal, anomalies: d.evaluate(normal, anomalies).notes
    assert met(*fresh) == [] and met(fresh[0], images("scratch", 2, 9)) == []  # these chose nothing: the threshold is one by fpr
    assert met([*write(tmp_path/"fresh", fresh[0]), *copies], fresh[1]) == ["5 of 14 images were learnt from, or chose the threshold: these numbers are too good"]
    assert "10 of 13" in met(images("good", 6, 9), np.concatenate([DENTS, fresh[1]]))[0]
    assert copies[0] in says("5 of 11 images were learnt from", d.calibrate, [*copies, *write(tmp_path/"fresh", fresh[0])])
    says("4 of 10 images were learnt from", d.calibrate, fresh[0], DENTS)
    d.calibrate(images("good", 6, 9), images("scratch", 2, 9), threshold="f1")
    assert "8 of 8" in met(images("good", 6, 9), images("scratch", 2, 9))[0]
    d.calibrate(*fresh)
    assert "9 of 9" in met(*fresh)[0] and met(images("good", 6, 9), images("scratch", 2, 9)) == []
    d.save(tmp_path/"d.safetensors")
    assert AnomalyDetector.load(tmp_path/"d.safetensors", "cpu").evaluate(*fresh).notes == met(*fresh)
    old = rewritten(tmp_path/"d.safetensors", tmp_path/"old.safetensors", summary={k: v for k, v in d.summary_.items() if k != "known"})
    assert AnomalyDetector.load(old, "cpu").evaluate(copies, DENTS).notes == []  # of a version that kept no digests
    p = AnomalyDetector("patchcore", threshold=2.0, **QUICK).fit(GOOD, DENTS, validation=(images("good", 6, 9), []))
    assert p.evaluate(images("good", 6, 9), DENTS).notes == []  # it has not learnt from the anomalies that it was given, and its threshold was given
    AnomalyDetector.load(old, "cpu").calibrate(GOOD, DENTS)

def test_scores_follow_the_weights(detector, folder):
    "also where they are changed in place, and though a folded copy computes them"
    d = AnomalyDetector("dra", **QUICK).fit(folder/"good", folder/"bad")
    first = d.score_samples(GOOD[:4])
    kept, again = d._quick(), d.score_samples(GOOD[:4])
    assert d._quick() is kept and np.array_equal(again, first)
    size = len(pickle.dumps(d))
    d._folded = None, None
    assert size == len(pickle.dumps(d))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(d)).score_samples(GOOD[:4]), first)
    d.score_samples(GOOD[:4])
    other = AnomalyDetector("dra", **QUICK | dict(seed=1)).fit(folder/"good", folder/"bad")
    d.method_.load_state_dict(other.method_.state_dict())
    np.testing.assert_array_equal(d.score_samples(GOOD[:4]), other.score_samples(GOOD[:4]))
    assert not np.allclose(d.score_samples(GOOD[:4]), first)
    a, b = (AnomalyDetector("patchcore", **QUICK).fit(o) for o in (GOOD[:12], GOOD[12:]))
    assert not np.allclose(a.score_samples(DENTS), b.score_samples(DENTS))
    a.method_.memory = b.method_.memory  # another tensor in the place of one
    np.testing.assert_array_equal(a.score_samples(DENTS), b.score_samples(DENTS))

def test_settings_of_the_next_training_change_no_trained_detector(folder, tmp_path):
    d = AnomalyDetector("devnet", fraction=.2, **QUICK).fit(folder/"good", folder/"bad")
    scores, report, p = d.score_samples(GOOD[:4]), str(d.report_), tmp_path/"d.safetensors"
    d.set_params(method="flos", image_size=96, fpr=.3)
    assert d.image_size == 96 and d.size_ == 64
    np.testing.assert_array_equal(d.score_samples(GOOD[:4]), scores)
    assert str(d.report_) == report and d.score_map(GOOD[0]).shape == (64, 64) and d.evaluate(GOOD[:2], DENTS).title.startswith("devnet")
    d.save(p)
    again = AnomalyDetector.load(p, "cpu")
    np.testing.assert_array_equal(again.score_samples(GOOD[:4]), scores)
    assert (again.method, again.image_size, again.fpr, again.settings) == ("devnet", 64, None, {"fraction": .2})
    d.set_params(method="devnet", fpr=None).calibrate(fpr=.25).save(p)
    assert AnomalyDetector.load(p, "cpu").get_params() == AnomalyDetector("devnet", fraction=.2, **QUICK | dict(device="cpu"), fpr=.25).get_params()
    assert d.fit(folder/"good", folder/"bad").size_ == 96

def test_a_loaded_detector_can_be_fitted_again(folder, tmp_path, monkeypatch):
    p, start = tmp_path/"d.safetensors", AnomalyDetector("patchcore", **QUICK).fit(GOOD)
    start.save(p)
    again = AnomalyDetector.load(p, "cpu")
    assert again.weights is None
    np.testing.assert_array_equal(again.fit(GOOD).score_samples(GOOD[:4]), start.score_samples(GOOD[:4]))
    save_file({k: v.contiguous() for k, v in start.method_.backbone.body.state_dict().items()}, tmp_path/"w.safetensors")
    AnomalyDetector("patchcore", **QUICK | dict(weights=str(tmp_path/"w.safetensors"))).fit(GOOD).save(p)
    own = AnomalyDetector.load(p, "cpu")
    message = says("to fit it again, call set_params", own.fit, GOOD)
    assert own.summary_["weights"] in message and own.summary_["weights"].startswith("w-") and str(tmp_path) not in str(own.get_params())
    own.set_params(weights=str(tmp_path/"w.safetensors")).fit(GOOD)
    monkeypatch.setattr(own, "params_", own.params_ | dict(weights="imagenet"))
    own.save(p)
    assert AnomalyDetector.load(p, "cpu").weights == "imagenet"

def test_a_source_that_fails_in_the_middle(detector):
    "What it gave before is scored first"
    def camera():
        yield from GOOD[:20]
        raise OSError("the camera is gone")
    found = []
    with pytest.raises(OSError, match="gone"): found.extend(detector.score_stream(camera(), batch=32, workers=1))
    assert len(found) == 20
    np.testing.assert_allclose([o.score for o in found], detector.score_samples(GOOD[:len(found)]), rtol=1e-4, atol=1e-5)

def test_loaded_where_nobody_wants_gradients(file, folder):
    "Heat maps ask for them all the same"
    import torch
    with torch.inference_mode(): maps = AnomalyDetector.load(file, "cpu").score_map(DENTS[:2], "gradient")
    np.testing.assert_array_equal(maps, AnomalyDetector.load(file, "cpu").score_map(DENTS[:2], "gradient"))

def test_images_from_a_generator(detector):
    fresh = images("good", 6, 7), images("dent", 3, 8)
    make = lambda: (iter(list(fresh[0])), {"dent": (o for o in fresh[1])})
    assert str(detector.evaluate(*make())) == str(detector.evaluate(fresh[0], {"dent": fresh[1]}))
    assert detector.evaluate(*make()).frame.n.tolist() == [6, 3]
    d = AnomalyDetector("patchcore", **QUICK).fit(iter(list(GOOD)), {"dent": iter(list(DENTS))})
    assert d.summary_["anomalies"] == {"dent": 4} and d.calibrate(*make(), threshold="f1").threshold_.normal == d.calibrate(fresh[0], {"dent": fresh[1]}).threshold_.normal

def test_habits_of_scikit_learn():
    from sklearn.base import clone
    d = AnomalyDetector("devnet", fpr=.1, fraction=.3, schedule=Schedule(epochs=1))
    again = clone(d)
    assert again is not d and again.get_params() == d.get_params() and again.method_ is None
    assert d.set_params(fraction=.2, seed=3).get_params()["fraction"] == .2
    says("unknown setting of devnet", d.set_params, fractoin=.2)
    says("epochs", AnomalyDetector, epochs=0)
    assert d.set_params(schedule=None, **QUICK).fit(GOOD, DENTS) is d

def test_pixel_metrics_where_there_are_masks(tmp_path, detector):
    root = mvtec_folder(tmp_path/"set", 4, 3, {"dent": 3})
    says("need masks", detector.evaluate, root, pixels=True)
    (root/"ground_truth/dent").mkdir(parents=True)
    for i in range(3): Image.fromarray(np.uint8(255*(np.indices((64, 64)).sum(0) < 40))).save(root/f"ground_truth/dent/{i:03}_mask.png")
    result = detector.evaluate(root, pixels=True)
    assert set(result.metrics) == {"auroc", "ap", "pixel_auroc", "aupro", "pixel_f1"} and result.frame.n.tolist() == [3, 3]
    masks = lambda result: [o for o in result.notes if "mask" in o]
    assert masks(result) == []
    catalog = read_labelled(root)
    half = detector.evaluate(catalog.assign(mask=pd.Series([m if p.endswith("000.png") else None for p, m in zip(catalog["path"], catalog["mask"])], dtype=object)), pixels=True)
    assert masks(half) == ["pixel metrics of 1 of 3 anomalies, the others have no mask"]
    boxed = detector.evaluate(catalog.assign(box=[(0, 0, 64, 64)]*len(catalog)), pixels=True)  # all of each image
    assert boxed.metrics == result.metrics and masks(boxed) == []

def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    "is reported in its place"
    import dra_nb.data.sources as sources
    listing = sources.list_images
    def refuse(path, **kwargs):
        if str(path).endswith("dent"): raise DraError("the folder dent cannot be listed")
        return listing(path, **kwargs)
    monkeypatch.setattr(sources, "list_images", refuse)
    found = list(stream(folder/"bad", 16))
    assert [e for _, _, e in found if e] == ["the folder dent cannot be listed"] and len(found) == 5
