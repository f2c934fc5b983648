from .arrays import look as look, read_batch as read_batch
from .batch import Batch as Batch, LabelUse as LabelUse, Raw as Raw, Unread as Unread
