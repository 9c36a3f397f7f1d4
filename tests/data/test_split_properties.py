"Properties of every split, on random catalogs (hypothesis): the rules of section 4.2 that no example can prove."

import random

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dra_nb.core import DraError
from dra_nb.data.catalog import make_catalog, split_normals
from dra_nb.data.protocols import PROTOCOLS, make_split

random_cases = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
NAMES = ["dent", "Dent", "scratch", "metal_contamination", "é", "hole 2"]


def category_rows(category, train, test, classes, crops):
    "Rows as a reader yields them; with `crops`, each image of an anomaly has two boxes"
    rows = [
        (f"{category}/n/{i}.png", None, category, "train" if i < train else "test", 0, "", None)
        for i in range(train + test)
    ]
    for name, n in classes.items():
        for i in range(n):
            boxes = [(0, 0, 4, 4), (4, 0, 8, 4)] if crops else [None]
            rows += [(f"{category}/{name}/{i}.png", box, category, "test", 1, name, None) for box in boxes]
    return rows


@st.composite
def catalogs(draw, most_categories=2, least_classes=1, least=1):
    "A catalog of 1 or 2 categories, with 1 to 25 normals on each side and up to 5 classes of up to 15 anomalies"
    rows = []
    for category in [""] if draw(st.booleans()) else list("ab")[:most_categories]:
        classes = draw(
            st.dictionaries(st.sampled_from(NAMES), st.integers(least, 15), min_size=least_classes, max_size=5)
        )
        rows += category_rows(
            category, draw(st.integers(1, 25)), draw(st.integers(1, 25)), classes, draw(st.booleans())
        )
    random.Random(draw(st.integers(0, 99))).shuffle(rows)
    return make_catalog(rows, "/data", "random")


seeds = st.integers(0, 2**32 - 1)


def split(catalog, data, **options):
    "A split of a category and, in the hard setting, a class that hypothesis picks; what cannot be had is not a case"
    category = options.pop("category", None) or data.draw(st.sampled_from(sorted(catalog.category.unique())))
    if options.get("protocol") == "hard":
        options.setdefault(
            "known_class",
            data.draw(
                st.sampled_from(sorted(catalog[(catalog.category == category) & (catalog.label == 1)].defect.unique()))
            ),
        )
    try:
        return make_split(catalog, category=category, **options)
    except DraError:
        assume(False)


def samples(catalog, rows):
    return set(zip(catalog.path.iloc[rows], catalog["box"].iloc[rows], strict=True))


@random_cases
@given(catalogs(), st.sampled_from(PROTOCOLS), st.integers(0, 12), seeds, st.data())
def test_no_sample_is_in_training_and_test(catalog, protocol, shots, seed, data):
    s = split(catalog, data, protocol=protocol, shots=shots, seed=seed, withheld=data.draw(st.integers(0, 12)))
    normal, chosen, test = (samples(catalog, o) for o in (s.normal, s.given, s.test))
    assert not normal & test and not chosen & test and not normal & chosen
    assert len(test) == len(s.test) and len(normal) == len(s.normal) and len(chosen) == len(s.given) == shots
    label, side = catalog.label.to_numpy(), catalog.split.to_numpy()
    assert (
        (label[s.given] == 1).all()
        and (label[s.normal] == 0).all()
        and (side[s.normal] == "train").all()
        and (side[s.test] == "test").all()
    )
    assert catalog.category.iloc[np.concatenate([s.normal, s.given, s.test])].nunique() == 1
    assert 0 < label[s.test].sum() < len(s.test)  # there is something to tell apart


@random_cases
@given(catalogs(least_classes=2), st.integers(0, 12), seeds, st.data())
def test_the_known_class_is_never_in_a_hard_test_set(catalog, shots, seed, data):
    s = split(catalog, data, protocol="hard", shots=shots, seed=seed)
    assert s.known_class and s.known_class not in set(catalog.defect.iloc[s.test]) and not s.seen.any()
    assert set(catalog.defect.iloc[s.given]) <= {s.known_class}
    rest = catalog[
        (catalog.category == catalog.category.iloc[s.test[0]])
        & (catalog.split == "test")
        & (catalog.defect != s.known_class)
    ]
    assert sorted(s.test) == list(rest.index)  # and nothing else leaves it


@random_cases
@given(catalogs(least=5), st.sampled_from(PROTOCOLS), seeds, st.data())
def test_shots_nest_and_share_a_test_set(catalog, protocol, seed, data):
    category = data.draw(st.sampled_from(sorted(catalog.category.unique())))
    known = {}
    if protocol == "hard":
        known = dict(
            known_class=data.draw(
                st.sampled_from(sorted(catalog[(catalog.category == category) & (catalog.label == 1)].defect.unique()))
            )
        )
    few, many = sorted(data.draw(st.lists(st.integers(1, 10), min_size=2, max_size=2)))
    a, b = (
        split(catalog, data, protocol=protocol, shots=n, seed=seed, category=category, **known) for n in (few, many)
    )
    assert (a.given == b.given[:few]).all() and np.array_equal(a.test, b.test) and np.array_equal(a.normal, b.normal)
    assert set(a.test[a.seen]) <= set(b.test[b.seen])  # more shots can only show more classes


@random_cases
@given(catalogs(), st.sampled_from(PROTOCOLS), seeds, st.data())
def test_references_are_the_train_normals_in_another_order(catalog, protocol, seed, data):
    s = split(catalog, data, protocol=protocol, shots=1, seed=seed)
    assert sorted(s.references) == list(s.normal) and len(set(s.references)) == len(s.normal)
    inside = catalog[
        (catalog.category == catalog.category.iloc[s.normal[0]]) & (catalog.label == 0) & (catalog.split == "train")
    ]
    assert list(s.normal) == list(inside.index)


@random_cases
@given(catalogs(most_categories=1, least=6), seeds, st.data())
def test_seeds_differ(catalog, seed, data):
    splits = [split(catalog, data, shots=3, seed=(seed + i) % 2**32, withheld=3) for i in range(6)]
    assert len({tuple(o.given) for o in splits}) > 1 and len({tuple(o.test) for o in splits}) > 1
    assert all(np.array_equal(o.normal, splits[0].normal) for o in splits)
    if len(splits[0].normal) > 3:
        assert len({tuple(o.references) for o in splits}) > 1


@random_cases
@given(catalogs(), st.sampled_from(PROTOCOLS), st.integers(1, 5), seeds, st.data())
def test_a_split_is_a_function_of_catalog_and_seed(catalog, protocol, shots, seed, data):
    a = split(catalog, data, protocol=protocol, shots=shots, seed=seed)
    rows = list(
        catalog.assign(path=[o.removeprefix("/data/") for o in catalog.path]).itertuples(index=False, name=None)
    )
    random.Random(seed).shuffle(rows)
    again = make_catalog(rows, "/data", "random")
    assert again.equals(catalog)
    b = make_split(again, protocol, a.known_class, shots, seed, category=catalog.category.iloc[a.test[0]])
    assert all(np.array_equal(getattr(a, o), getattr(b, o)) for o in ("normal", "given", "references", "test", "seen"))


@random_cases
@given(
    catalogs(),
    st.sampled_from([*PROTOCOLS, "genral"]),
    st.sampled_from(["", *NAMES, "nonsense"]),
    st.integers(-1, 40),
    st.integers(-1, 80),
)
def test_what_cannot_be_had_is_refused(catalog, protocol, known_class, shots, withheld):
    "Either a split as asked for, or an error that says why not; never another split"
    try:
        s = make_split(catalog, protocol, known_class, shots, 0, withheld=withheld, category=catalog.category.iloc[0])
    except DraError as e:
        assert str(e)
        return
    assert (
        len(s.given) == shots
        and (protocol == "hard") == bool(s.known_class)
        and s.known_class.lower() == known_class.lower()
    )
    anomalies = catalog[(catalog.category == catalog.category.iloc[0]) & (catalog.label == 1)]
    away = (anomalies.defect == s.known_class).sum() if protocol == "hard" else max(shots, withheld)
    assert catalog.label.iloc[s.test].sum() == len(anomalies) - away


@random_cases
@given(st.integers(1, 3000), st.integers(0, 5))
def test_three_to_one(n, seed):
    sides = split_normals(n, seed)
    assert (
        len(sides) == n
        and sides.count("test") == -(-n // 4)
        and set(sides) <= {"train", "test"}
        and sides == split_normals(n, seed)
    )
    if n > 20:
        assert sides != split_normals(n, seed + 1)
