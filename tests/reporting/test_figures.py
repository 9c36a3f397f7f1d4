"Figures: what they show is what was put in, and what is drawn of the network is the network."

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from dra_nb.core import DraError
from dra_nb.data.protocols import Split
from dra_nb.evaluation.features import feature_rows, feature_table, shown_rows
from dra_nb.methods.registry import create_method, load_methods
from dra_nb.reporting.ablation_figures import (
    REFERENCE_SIZES,
    disentangled_figure,
    disentangled_values,
    reference_size_figure,
    reference_size_values,
)
from dra_nb.reporting.cells import match_runs
from dra_nb.reporting.diagram import architecture_diagram
from dra_nb.reporting.figures import KINDS, image_kinds, save_figure
from dra_nb.reporting.histograms import histogram_values, score_histograms
from dra_nb.reporting.names import KEYS
from dra_nb.reporting.trace import dra_trace, top_k
from dra_nb.reporting.tsne import feature_panels, separability, tsne_coordinates, tsne_panels, tsne_table
from dra_nb.training.compute import Compute


class Noise:
    "12 images of noise"

    size = 64

    def __init__(self):
        self.images = torch.randint(
            0, 255, (12, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )

    def __len__(self):
        return 12

    def __getitem__(self, rows):
        return self.images[torch.as_tensor(rows)]


STORE = Noise()


def new(name, **settings):
    return create_method(
        name,
        backbone="resnet18_stage2",
        **({"outliers": "toy"} if load_methods()[name].needs_outliers else {}),
        **settings,
    )


@pytest.mark.parametrize("name", sorted(load_methods()))
def test_features_of_every_method(name):
    method, rows = new(name), np.arange(6)
    whole = feature_rows(method, STORE, rows, compute=Compute("cpu", "fp32"))
    assert (
        whole.ndim == 2
        and len(whole) == 6
        and whole.dtype == np.float32
        and np.isfinite(whole).all()
        and whole.std(0).max() > 0
    )
    np.testing.assert_array_equal(feature_rows(method, STORE, rows, compute=Compute("cpu", "fp32")), whole)
    np.testing.assert_array_equal(feature_rows(new(name), STORE, rows, compute=Compute("cpu", "fp32")), whole)
    alone = feature_rows(method, STORE, rows[::-1].copy(), compute=Compute("cpu", "fp32"), batch_size=1)[::-1]
    np.testing.assert_allclose(alone, whole, rtol=1e-3, atol=1e-4)
    half = feature_rows(method, STORE, rows, compute=Compute("cpu", "bf16"))
    assert half.dtype == np.float32 and np.abs(half - whole).max() < 0.1 * np.abs(whole).max()


def test_kdad_shows_its_cloner():
    method = new("kdad").eval()
    before = feature_rows(method, STORE, np.arange(4), compute=Compute("cpu", "fp32"))
    for p in method.cloner.parameters():
        p.data.mul_(1.1)
    assert not np.allclose(feature_rows(method, STORE, np.arange(4), compute=Compute("cpu", "fp32")), before)


CATALOG = pd.DataFrame(
    dict(
        path=[f"{i}.png" for i in range(12)],
        box=None,
        category="",
        split=["train"] * 3 + ["test"] * 9,
        label=[0] * 5 + [1] * 7,
        defect=[""] * 5 + ["cut"] * 4 + ["hole"] * 3,
        mask=None,
    )
)
CATALOG.attrs = {"dataset": "toy", "root": ""}
HARD = Split(
    normal=np.arange(3),
    given=np.array([6, 5]),
    references=np.arange(3),
    test=np.array([3, 4, 9, 10, 11]),
    seen=np.zeros(5, bool),
    known_class="cut",
)


def test_feature_table_holds_the_known_class():
    table = feature_table(new("devnet"), STORE, CATALOG, HARD, compute=Compute("cpu", "fp32"))
    assert table.row.tolist() == [3, 4, 9, 10, 11, 5, 6, 7, 8] and table.tested.tolist() == [True] * 5 + [False] * 4
    assert (
        table.row[table.given].tolist() == [5, 6]
        and table.defect[table.seen].tolist() == ["cut"] * 4
        and image_kinds(table).tolist().count("unseen anomaly") == 3
    )
    unsupervised = Split(HARD.normal, HARD.given[:0], HARD.references, HARD.test, HARD.seen, "cut")
    assert (shown_rows(CATALOG, unsupervised) == table.row).all()  # KDAD is given nothing and shows the same images


def clusters(share, n=400, seed=0):
    "Normals around one axis; a share of the anomalies around another, the rest among the normals"
    rng, axis = np.random.default_rng(seed), 12 * np.eye(16)
    at = np.r_[
        np.repeat(axis[:1], n, 0),
        np.repeat(axis[1:2], round(share * n), 0),
        np.repeat(axis[:1], n - round(share * n), 0),
    ]
    return at + rng.normal(size=at.shape), np.arange(2 * n) >= n


@pytest.mark.parametrize("share", [1, 0.5, 0])
def test_separability_is_known(share):
    x, y = clusters(share)
    assert separability(x, y) == pytest.approx(0.5 + share / 2, abs=0.05)
    assert separability(7 * x, y) == pytest.approx(separability(x, y), abs=1e-9)
    shuffled = np.random.default_rng(1).permutation(len(x))
    assert separability(x[shuffled], y[shuffled]) == pytest.approx(separability(x, y), abs=0.05)


def test_separability_needs_two_of_each():
    x, _ = clusters(1, 5)
    assert np.isnan(separability(x, np.arange(10) < 1)) and np.isnan(separability(x, np.zeros(10, bool)))
    assert separability(x, np.arange(10) >= 5, k=50) == 1.0


def table(share, given=(), n=30):
    x, y = clusters(share, n)
    frame = pd.DataFrame(
        dict(
            row=range(2 * n),
            path=[f"{i}.png" for i in range(2 * n)],
            label=y.astype(int),
            defect=np.where(y, "cut", ""),
            seen=np.arange(2 * n) % 2 == 1,
            tested=True,
        )
    )
    frame["seen"] &= y
    return frame.assign(given=frame.row.isin(given), features=list(x.astype("float32")))


@pytest.fixture(scope="module")
def embedded():
    return tsne_table({("A", "kdad"): table(0), ("A", "dra"): table(1, given=[31, 33]), ("B", "dra"): table(1)})


def test_tsne_is_deterministic(embedded):
    pytest.importorskip("openTSNE")
    again = tsne_table({("A", "kdad"): table(0), ("A", "dra"): table(1, given=[31, 33]), ("B", "dra"): table(1)})
    pd.testing.assert_frame_equal(again, embedded, check_exact=True)
    x = clusters(1, 20)[0]
    assert not (tsne_coordinates(x, seed=1) == tsne_coordinates(x, seed=0)).all()
    for bad, word in ((x[:5], "at least 8"), (x * np.nan, "not finite")):
        with pytest.raises(DraError, match=word):
            tsne_coordinates(bad)


def test_given_images_are_out_of_all_numbers_of_a_row(embedded):
    left_out = embedded[~embedded.counted].groupby(["panel", "method"]).row.apply(list)
    assert left_out.to_dict() == {("A", "dra"): [31, 33], ("A", "kdad"): [31, 33]}
    assert embedded[embedded.given].method.unique().tolist() == ["dra"]
    first = embedded.groupby(["panel", "method"])[["seen", "unseen"]].first()
    assert (first.loc[("A", "dra")] == 1).all() and (first.loc[("A", "kdad")] < 0.8).all()


def test_tsne_csv_is_what_is_drawn(embedded, tmp_path):
    fig = tsne_panels(embedded)
    csv = pd.read_csv(save_figure(fig, embedded, tmp_path, "fig1")["csv"])
    panels = [("A", "kdad"), ("A", "dra"), ("B", "kdad"), ("B", "dra")]
    for ax, (panel, method) in zip(fig.axes, panels, strict=True):
        drawn = np.concatenate([np.empty((0, 2)), *(c.get_offsets() for c in ax.collections)])
        here = csv[(csv.panel == panel) & (csv.method == method)]
        np.testing.assert_allclose(np.sort(drawn, 0), np.sort(here[["x", "y"]], 0))
        for kind, style in KINDS.items():
            of = [
                c
                for c in ax.collections
                if len(c.get_facecolor()) and np.allclose(c.get_facecolor()[0, :3], to_rgb(style["color"]))
            ]
            assert sum(len(c.get_offsets()) for c in of) == (here.kind == kind).sum()
        assert ax.get_xlabel() == (
            "run missing" if here.empty else f"AUROC: seen {here.seen.iloc[0]:.2f}, unseen {here.unseen.iloc[0]:.2f}"
        )


def test_without_opentsne(monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(DraError, match="notebooks"):
        tsne_coordinates(np.ones((20, 4)))


def test_panels_of_a_study():
    from types import SimpleNamespace

    from dra_nb.experiments.spec import RunSpec

    specs = [
        RunSpec("elpv", "", "hard", k, seed=s, method=m)
        for k in ("mono", "poly")
        for m in ("dra", "kdad")
        for s in (0, 1)
    ]
    runs = SimpleNamespace(
        done=lambda s, features: features and (s.method, s.known_class) != ("dra", "poly"), features=lambda s: s
    )
    got = feature_panels(SimpleNamespace(specs=specs, runs=runs, columns={s.key: s.method for s in specs}))
    assert list(got) == [("ELPV mono", "dra"), ("ELPV mono", "kdad"), ("ELPV poly", "kdad")] and {
        s.seed for s in got.values()
    } == {0}


def made_up(values, seeds=3):
    "Runs whose AUROCs are value - 0.01, value, value + 0.01"
    return pd.DataFrame(
        [
            dict(zip(KEYS, key)) | {"seed": s, "auroc": v + 0.01 * (s - 1)}
            for key, v in values.items()
            for s in range(seeds)
        ]
    )


def drawn(fig):
    "Positions of the dots, left to right ends of their bars"
    ax = fig.axes[0]
    return sorted(
        (round(c.lines[0].get_xdata()[0], 6), *np.round(np.array(c.lines[2][0].get_segments()[0])[:, 0], 6))
        for c in ax.containers
    )


@pytest.mark.parametrize(
    "figure,values", [(disentangled_figure, disentangled_values), (reference_size_figure, reference_size_values)]
)
def test_figure_3_csv_is_what_is_drawn(figure, values, tmp_path):
    left = figure is disentangled_figure
    cells = {
        ("mvtec", "carpet", "" if left else "hole"): 0.8,
        ("mvtec", "carpet" if not left else "wood", "" if left else "cut"): 0.9,
        ("elpv", "", "" if left else "mono"): 0.7,
    }
    variants = dict(multiclass=-0.1, dra2a=-0.03, dra=0) if left else dict(dra_nr1=-0.02, dra=0, dra_nr10=0.01)
    asked = made_up({(*c, m, 10): v + gain for c, v in cells.items() for m, gain in variants.items()})
    runs = match_runs(asked, asked[[*KEYS, "seed"]])
    saved = pd.read_csv(save_figure(figure(runs), values(runs), tmp_path, "fig3")["csv"])
    assert len(saved) == (3 if left else 6) and set(saved.n_seeds) == {3} and np.allclose(saved["std"], 0.01)
    assert drawn(figure(runs)) == sorted(
        zip(saved.auroc.round(6), (saved.auroc - saved["std"]).round(6), (saved.auroc + saved["std"]).round(6))
    )
    dra = saved[saved.method == "dra"].set_index("row").auroc
    assert dra.to_dict() == pytest.approx({"Industrial": (0.85 + 0.7) / 2} if left else {"Carpet": 0.85, "ELPV": 0.7})


def test_figure_3_names_what_is_missing():
    asked = made_up(
        {("elpv", "", "", m, 10): 0.7 for m in ("multiclass", "dra2a", "dra")} | {("headct", "", "", "dra", 10): 0.9}
    )
    some = asked[
        (asked.dataset == "elpv") & ((asked.method != "dra2a") | (asked.seed == 0)) & (asked.method != "multiclass")
    ]
    values = disentangled_values(match_runs(some, asked[[*KEYS, "seed"]])).set_index("method")
    assert values.missing.to_dict() == {"multiclass": 3, "dra2a": 2, "dra": 0} and values.n_seeds.to_dict() == {
        "multiclass": 0,
        "dra2a": 1,
        "dra": 3,
    }
    assert set(values.row) == {"Industrial"} and np.isnan(values.loc["multiclass", "auroc"])
    texts = [t.get_text() for t in disentangled_figure(match_runs(some, asked[[*KEYS, "seed"]])).axes[0].texts]
    assert "missing*" in texts and "0.690*" in texts and "0.700±0.010" in texts and "* runs missing" in texts


@pytest.mark.parametrize(
    "size,backbone,settings",
    [
        (64, "resnet18_stage2", {}),
        (96, "resnet18_stage2", dict(scales=1, n_reference=3)),
        (128, "resnet18", dict(heads=("seen", "residual"))),
    ],
)
def test_the_diagram_has_the_shapes_of_the_modules(size, backbone, settings):
    fig, calls = architecture_diagram(size, backbone, **settings)
    texts = [t.get_text() for t in fig.axes[0].texts]
    net = create_method("dra", backbone=backbone, **settings).eval()

    def count(shape):
        return texts.count("×".join(map(str, shape)))

    with torch.no_grad():
        for k in range(net.scales):
            x = torch.zeros(1, 3, size // 2**k, size // 2**k)
            M = net.backbone(x)
            residual = 2 * (
                "residual" in net.heads
            )  # the map of references, its difference to the image's, and the convolution of that
            assert count(x.shape[1:]) == 1 + (net.n_reference > 0)
            assert count(M.shape[1:]) == 1 + (net.n_reference > 0) + residual
            scored = net.heads["seen"].classify(M)
            assert count(scored.shape[1:]) == sum(h != "normality" for h in net.heads)
            assert texts.count(f"{max(int(0.1 * scored.numel()), 1)} of {scored.numel()}") == sum(
                h != "normality" for h in net.heads
            )
        for name, m in zip(net.backbone.ends, net.backbone.stages(torch.zeros(1, 3, size, size))):
            assert f"{name}  {'×'.join(map(str, m.shape[1:]))}" in texts
    assert texts.count("+") == len(set(net.heads) - {"normality"}) and texts.count("−") == ("normality" in net.heads)
    assert f"{sum(p.numel() for p in net.backbone.parameters()) / 1e6:.1f} M parameters" in texts and (
        f"{net.n_reference} references" in texts
    ) == bool(net.n_reference)
    assert set(calls.columns) == {"phase", "scale", "module", "kind", "input", "output", "parameters"}


def test_trace_leaves_no_hooks():
    method, calls = dra_trace(64, "resnet18_stage2")
    assert (
        not any(m._forward_hooks for m in method.modules())
        and set(calls.phase) == {"references", "image"}
        and set(calls.scale) == {0, 1}
    )
    assert [top_k(0.1, n) for n in (1, 9, 20, 196)] == [1, 1, 2, 19]


def test_histogram_csv_is_what_is_drawn(tmp_path):
    rng = np.random.default_rng(0)

    def run(n):
        return pd.DataFrame(
            dict(
                label=[0] * n + [1] * n,
                seen=[False] * n + [True] * (n // 4) + [False] * (n - n // 4),
                score=rng.normal(size=2 * n),
                score_a=rng.normal(size=2 * n),
            )
        )

    tables = {"one": run(60), "two": run(100)}
    for heads in (False, True):
        values = histogram_values(tables, heads, bins=12)
        fig = score_histograms(tables, heads, bins=12)
        saved = pd.read_csv(save_figure(fig, values, tmp_path, "h")["csv"])
        panels = [ax for ax in fig.axes if ax.get_visible()]
        for ax, (_, v) in zip(panels, saved.groupby(["run", "score"], sort=False), strict=True):
            for patch, (_, kind) in zip(ax.patches[::2], v.groupby("kind", sort=False), strict=True):
                np.testing.assert_allclose(patch.get_data().values, kind["share"])
                np.testing.assert_allclose(patch.get_data().edges, [*kind.low, kind.high.iloc[-1]])
        counts = values.groupby(["run", "kind"]).images.sum() / (1 + heads)
        assert counts["two"].to_dict() == {"normal": 100, "seen anomaly": 25, "unseen anomaly": 75}
    flat = pd.DataFrame(dict(label=[0, 1], seen=False, score=[1.0, 1.0]))
    assert (
        histogram_values({"": flat}).images.sum() == 2
        and score_histograms({"": flat}).axes[0].get_title() == "AUROC 0.500"
    )


def test_figures_fit_page_and_column(embedded):
    asked = made_up({("elpv", "", k, m, 10): 0.7 for k in ("mono", "poly") for m in REFERENCE_SIZES})
    made = [(tsne_panels(embedded, w), w) for w in (7.0, 3.4)] + [
        (reference_size_figure(match_runs(asked, asked[[*KEYS, "seed"]])), 3.4),
        (architecture_diagram(64, "resnet18_stage2")[0], 7.0),
    ]
    for fig, width in made:
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        box = fig.get_tightbbox(canvas.get_renderer())
        assert (
            fig.get_figwidth() == width
            and box.x0 > -0.02
            and box.y0 > -0.02
            and box.x1 < width + 0.02
            and box.y1 < fig.get_figheight() + 0.02
        )
        assert all(t.get_fontsize() >= 6 for ax in fig.axes for t in ax.texts)
