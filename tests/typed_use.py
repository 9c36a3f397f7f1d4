"""How a script uses the public face, for mypy: names, arguments and results have types. It is checked, not run."""

from pathlib import Path

import dra_nb


def inspect(normal: str, anomalies: str, inbox: str) -> list[str]:
    "Names of the images above the threshold"
    detector = dra_nb.AnomalyDetector(image_size=224)
    detector.fit(normal, anomalies)
    detector.save("parts.safetensors")
    return [scored.name for scored in detector.score_stream(inbox) if scored.anomaly]


def one_run(folder: Path) -> dict:
    "Metrics of one run"
    catalog = dra_nb.load_catalog("textures")
    split = dra_nb.make_split(catalog, "hard", "cut", shots=10, category="wood")
    store = dra_nb.open_store(catalog, size=64, progress=False)
    method = dra_nb.create_method("dra", backbone="resnet18_stage2")
    dra_nb.fit(method, store, split, dra_nb.Schedule(epochs=1, steps=2, batch=8, anomalies=2))
    predicted: dra_nb.Prediction = dra_nb.score(method, store, split.test, compute=dra_nb.Compute(device="cpu"))
    test = catalog.iloc[split.test]
    return dra_nb.evaluate(predicted.score, test.label, split.seen).asdict()


def study(data: str, results: Path) -> int:
    "Number of finished runs"
    runs = dra_nb.Runs(results)
    context = dra_nb.RunContext(data=data, weights="imagenet")
    specs = [dra_nb.RunSpec("elpv", method="dra", seed=seed) for seed in range(3)]
    return dra_nb.run_missing(specs, context, runs).done
