"""Files to checked arrays: what people give, read without trusting it, as large as it may be."""

from clmoe_cli.data.arrays import read_batch
from clmoe_cli.data.batch import Batch, Choice, LabelUse, Raw

__all__ = ["Batch", "Choice", "LabelUse", "Raw", "read_batch"]
