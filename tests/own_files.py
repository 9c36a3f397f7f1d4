"A user's own files, for the tests of the readers of folders and csv files."


def touch(root, *names):
    "Empty files; catalogs do not open images"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listing(root, *lines, header="path,label", name="parts.csv"):
    (root / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return root / name


def counts(catalog):
    return catalog.groupby(["split", "defect"]).size().to_dict()


NORMALS = [f"{i:02}.png" for i in range(10)]
