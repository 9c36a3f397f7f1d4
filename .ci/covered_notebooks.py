"""Run all notebooks for `coverage`, their exported cells compiled as the lines of the modules that they become.

Notebooks define everything anew instead of importing it, so that plainly run they cover nothing of the package.
"""

import ast
import re

import notebooks
from IPython.core.compilerop import CachingCompiler
from nbdev.config import get_config

MARKER = re.compile(r"^# %% .*\.ipynb #\w+\n", re.M)


def exported(package):
    "Source of an exported cell -> (its module's file, lines before it); imports read as in the notebook"
    found = {}
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        starts = [m.end() for m in MARKER.finditer(text)]
        for start, end in zip(starts, [*(m.start() for m in MARKER.finditer(text)), len(text)][1:]):
            found[plain(text[start:end])] = str(file), text.count("\n", 0, start)
    return found


def plain(source):
    "Source without what the export rewrites: relative imports, blank lines at its ends"
    return re.sub(r"^(\s*)from [\w.]+ import", r"\1from import", source.strip(), flags=re.M)


def compile_as_modules(places):
    "Cells compiled from now on bear the file and the lines of the module that they are exported to"
    cache, ast_parse, before = CachingCompiler.cache, CachingCompiler.ast_parse, {}

    def cached(self, transformed_code, number=0, raw_code=None):
        name = cache(self, transformed_code, number, raw_code=raw_code)
        file, before[file] = places.get(plain(transformed_code), (name, 0))
        return file

    def parsed(self, source, filename="<unknown>", symbol="exec"):
        return ast.increment_lineno(ast_parse(self, source, filename, symbol), before.get(filename, 0))

    CachingCompiler.cache, CachingCompiler.ast_parse = cached, parsed


if __name__ == "__main__":
    compile_as_modules(exported(get_config().lib_path.absolute()))
    notebooks.main()
