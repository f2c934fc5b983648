from .arrays import read_batch as read_batch
from .batch import Batch as Batch, Choice as Choice, LabelUse as LabelUse, Raw as Raw
