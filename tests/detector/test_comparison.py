"What cannot be compared is refused before anything is trained."

from small_detectors import DENTS, GOOD, QUICK, says

from dra_nb.detector.comparison import compare_methods
from dra_nb.detector.detector import AnomalyDetector


def test_without_held_out_normals_there_is_nothing_to_compare():
    settings = QUICK | dict(epochs=None, steps=None, batch=None, holdout=0.0, threshold=1.0)
    candidates = {name: AnomalyDetector("patchcore", seed=i, **settings) for i, name in enumerate(("one", "two"))}
    says("held-out normals, and there are none: leave out holdout=0", compare_methods, candidates, GOOD, DENTS)
