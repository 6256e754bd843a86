"""The second stage of `decode: staged`: decoding alone is searched, on the best trained models."""

from hpo_summarize.staged.decoder import Decoder
from hpo_summarize.staged.finalists import find_finalists
from hpo_summarize.staged.search import DecodingSearch, shuffled_blocks

__all__ = ["Decoder", "DecodingSearch", "find_finalists", "shuffled_blocks"]
