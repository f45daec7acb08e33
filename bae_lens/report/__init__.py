"""What is known of a dictionary's latents as one static HTML file that people can read.

The data's way: evidence, metrics and ``sentences`` → ``content`` (plain values, text packed by
``packing``) → ``page`` (the file: ``template.html`` with its style, script and data).
"""

from bae_lens.report.content import Compared
from bae_lens.report.page import write_comparison, write_report
from bae_lens.report.sentences import CodedSentence, collect_sentences

__all__ = [
    "CodedSentence",
    "Compared",
    "collect_sentences",
    "write_comparison",
    "write_report",
]
