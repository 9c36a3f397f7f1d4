"Notebooks for tests; nbformat takes two seconds to import, so only tests that need it do"


def notebook(*cells, tags=("parameters",), **kernel):
    "A notebook of these code cells, the first of them tagged"
    import nbformat

    nb = nbformat.v4.new_notebook(
        metadata=dict(papermill={}, kernelspec=dict(name="python3", display_name="Python", language="python") | kernel),
        cells=[nbformat.v4.new_code_cell(c) for c in cells],
    )
    nb.cells[0].metadata["tags"] = list(tags)
    return nb


def read(file):
    "The notebook in a file"
    import nbformat

    return nbformat.read(file, 4)


def write(nb, file):
    "Write a notebook; its file is returned"
    import nbformat

    nbformat.write(nb, file)
    return file
