"""What is known of a dictionary's latents as one static HTML file that people can read.

The data's way: records of latents, ``metrics``, ``scores`` and ``sentences`` → ``content`` (plain values, text
packed by ``packing``) → ``page`` (the file: ``report.html`` with its style, scripts and data, by ``bae_lens.html_page``).
"""

from bae_lens.report.content import Compared
from bae_lens.report.page import write_comparison, write_report
from bae_lens.report.scores import Result
from bae_lens.report.sentences import CodedSentence, collect_sentences

__all__ = [
    "CodedSentence",
    "Compared",
    "Result",
    "collect_sentences",
    "write_comparison",
    "write_report",
]
