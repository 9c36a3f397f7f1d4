"Equations as MathML, which browsers typeset themselves: no script, no request."

import re
from html import escape
from xml.etree import ElementTree

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)


def to_mathml(
    latex: str,  # without dollar signs
    display: str,  # "inline" or "block"
) -> str:  # a <math> element
    "Translate LaTeX; an equation that cannot be translated is a warning, which ends the build"
    try:
        text = convert(re.sub(r"\\arg(?![a-z])", r"\\mathrm{arg}\\,", latex), display=display)
        ElementTree.fromstring(text)
    except Exception as e:
        logger.warning("equation cannot be translated to MathML (%s): %s", e, latex)
        return f"<code>{escape(latex)}</code>"
    if "\\" in text:
        logger.warning("MathML has no %s: %s", re.findall(r"\\\w*", text), latex)
    return text


def visit_inline(self, node):
    self.body.append(to_mathml(node.astext(), "inline"))
    raise SkipNode


def visit_block(self, node):
    self.body.append(f'<div class="equation">{to_mathml(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
