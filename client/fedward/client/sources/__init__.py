"""Where a site's data come from: every source is a lazy table, some have pictures too.

Sources are read by polars, Pillow and NumPy; fedward has no parser of its own. Nothing is loaded by
opening a source.
"""

from fedward.client.sources.open import open_source
from fedward.client.sources.source import ROW, PictureFindings, Pictures, Source

__all__ = ["ROW", "PictureFindings", "Pictures", "Source", "open_source"]
