"Pipelines, cross-validation, grids and clones of scikit-learn, with paths and with arrays."

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted
from small_detectors import DENTS, GOOD, QUICK, says, write

from dra_nb.detector.detector import AnomalyDetector

X, Y = np.concatenate([GOOD[:12], DENTS]), np.r_[np.zeros(12, int), np.ones(4, int)]


def new(**settings):
    return AnomalyDetector("patchcore", **QUICK | dict(image_size=32) | settings)


@pytest.mark.parametrize("scoring", [None, "roc_auc", "average_precision"])
def test_cross_validation_of_arrays_and_paths(tmp_path, scoring):
    for images in (X, write(tmp_path, X)):
        found = cross_val_score(new(), images, Y, cv=2, scoring=scoring, error_score="raise")
        assert len(found) == 2 and (found > 0.9).all()  # dents are found, and not taken for normals


def test_labels_of_either_kind_are_the_anomalies(tmp_path):
    reference = new().fit(GOOD[:12], DENTS)
    for labels in (Y, Y.tolist(), Y == 1, np.where(Y, -1, 1)):
        d = new().fit(X, labels)
        np.testing.assert_array_equal(d.score_samples(X), reference.score_samples(X))
        assert d.summary_["anomalies"] == {"anomaly": 4} and d.score(X, labels) == roc_auc_score(
            Y, d.decision_function(X)
        )
    assert new().fit(GOOD[:12], np.zeros(12)).summary_["anomalies"] == {}
    says("not certain", new().fit, X, np.ones(16))
    says("16 images", new().fit, X, Y[:5])
    says("a list of paths", new().fit, tmp_path, Y)


def test_labels_in_the_opposite_order_invert_no_scorer():
    "1 and -1: the score of the detector is right, and roc_auc, which would be upside down, stops"
    labels = np.where(Y, -1, 1)
    assert (cross_val_score(new(), X, labels, cv=2, error_score="raise") > 0.9).all()
    with pytest.raises(AttributeError, match="wrong way round"):
        cross_val_score(new(), X, labels, cv=2, scoring="roc_auc", error_score="raise")


@pytest.mark.slow
def test_pipeline_clone_grid_and_fitted():
    pipe = make_pipeline(new())
    with pytest.raises(NotFittedError):
        check_is_fitted(new())
    assert pipe.fit(X, Y).score(X, Y) > 0.9 and set(pipe.predict(X)) <= {0, 1} and is_classifier(pipe)
    check_is_fitted(pipe[-1])
    assert clone(pipe)[-1].scorer_ is None and clone(pipe)[-1].get_params() == pipe[-1].get_params()
    assert make_pipeline(new()).fit(GOOD[:12]).predict(DENTS).all()  # without labels
    grid = GridSearchCV(new(), {"image_size": [32, 48]}, cv=2, error_score="raise").fit(X, Y)
    assert grid.best_score_ > 0.9 and grid.best_estimator_.size_ in (32, 48)
    tags = pipe[-1].__sklearn_tags__()
    assert not tags.input_tags.two_d_array and not tags.target_tags.required and not tags.non_deterministic
