"The methods that learn from normals only, from the raw folder to the record: given anomalies neither need to exist nor enter."
import numpy as np, pytest, torch

from conftest import mvtec_folder, short_spec
from dra_nb.core import DraError
from dra_nb.experiments.engine import Place, execute
from dra_nb.experiments.runs import Runs
from dra_nb.methods.method import Schedule, load_method, method_schedule
from dra_nb.training.loop import score_rows

SCHEDULES = {"kdad": Schedule(epochs=2, steps=3, batch=6, anomalies=0, lr=1e-3), "patchcore": method_schedule("patchcore", {})}

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder that holds one small dataset"
    folder = tmp_path_factory.mktemp("normals_only")
    mvtec_folder(folder/"mine")
    return folder

@pytest.fixture(params=sorted(SCHEDULES))
def run(request, data, tmp_path):
    "Execute a run of one of the methods: metrics and the table of scores"
    def go(save=None, **changes):
        spec, runs = short_spec("mine", method=request.param, schedule=SCHEDULES[request.param], **changes), Runs(tmp_path)
        metrics = execute(spec, Place(str(data), device="cpu", precision="fp32"), runs, save)
        assert runs.done(spec) and runs.read(spec)["metrics"] == metrics
        return metrics, runs.scores(spec)
    return go

def test_no_anomaly_given(run):
    metrics, table = run(shots=0)
    assert metrics["auroc_seen"] is None and metrics["n_seen"] == 0 and metrics["n_unseen"] == 24 - 10  # ten are withheld, as for the others
    assert np.isfinite(table.score).all() and metrics["auroc"] > 0.6

def test_given_anomalies_do_not_enter(run):
    (_, none), (_, ten) = run(shots=0), run(shots=10)
    assert none.path.tolist() == ten.path.tolist() and np.array_equal(none.score, ten.score) and ten.seen.any()

def test_kdad_refuses_a_schedule_with_anomalies(data, tmp_path):
    spec = short_spec("mine", method="kdad", shots=4)  # whose schedule puts anomalies into every batch
    with pytest.raises(DraError, match="anomalies=0"): execute(spec, Place(str(data), device="cpu"), Runs(tmp_path))
    assert not Runs(tmp_path).done(spec)

def test_hard_setting_without_anomalies(run):
    metrics, table = run(shots=0, protocol="hard", known_class="dent")
    assert set(table.defect) == {"", "scratch"} and metrics["n_unseen"] == 12

def test_saved_by_the_engine(run, data, tmp_path):
    from dra_nb.data.catalog import load_catalog
    from dra_nb.data.images import open_store
    from dra_nb.data.protocols import make_split
    _, table = run(tmp_path/"m.safetensors", shots=0)
    catalog = load_catalog("mine", str(data))
    again = score_rows(load_method(tmp_path/"m.safetensors"), open_store(catalog, 64, progress=False), make_split(catalog, shots=0).test, "cpu", "fp32")
    np.testing.assert_allclose(again["score"], table.score, rtol=1e-5)

@pytest.mark.parametrize("side", [33, 75, 100])
@torch.no_grad()
def test_images_of_odd_size(side):
    from dra_nb.methods.method import create_method
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for backbone in ("resnet18", "vgg16"):
        net = create_method("kdad", backbone=backbone).eval()
        assert net.score(images).isfinite().all() and net.score_map(images).isfinite().all()
        net = create_method("patchcore", backbone=backbone).eval()
        net.register_buffer("memory", net._patches(images)[0].flatten(0, 1))
        assert net.score(images)[0] < 1e-3 < net.score(images)[1]
