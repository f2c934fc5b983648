"""Every limit on memory, with its reason. Modules name theirs after what they do with it, which tests may change."""

from __future__ import annotations

IMAGES_BYTES = 64 << 30
"""The most bytes of arrays that are read from one file or folder, compressed or not."""
STREAM_BYTES = 64 << 30
"""The most bytes taken from a pipe; they go to disk."""
LABELS_BYTES = 4 << 30
"""Unlike images they are sorted in memory."""
IMAGE_VALUES = 1 << 28
"""Values of one image: it is handled whole."""
UNPACKED_BYTES = 1 << 20
"""Bytes of a compressed file that are unpacked at a time."""
HEADER_BYTES = 1 << 16
"""Bytes of an array's header; numpy's own take a hundred."""
LINE_BYTES = 1 << 24
"""Bytes of one line."""
COLUMNS = 1 << 20
"""Columns of a table: a row of them is in memory as text."""
CELLS = 1 << 18
"""Cells that are turned into numbers at a time."""
COMPARED_ROWS = 1024
"""Rows of a table that are compared with each other, to see what rounding takes from a column."""
COMPARED_NUMBERS = 1 << 16
"""Numbers of these rows, at most: of wide tables fewer rows."""
PICTURES_BYTES = 64 << 20
"""Bytes of decoded pictures that wait for their transform at a time."""
PICTURES_DECODED = 16
"""Pictures of each thread that are decoded ahead of their transform, at most."""
PICTURES_LOOKED_AT = 64
"""Pictures of each thread whose headers are read at a time."""
PICTURE_HEAD_BYTES = 1 << 16
"""Bytes at the start of a picture in which its configuration is looked for."""
THUMBNAILS_BYTES = 4 << 20
"""Characters of the small pictures on one page, which a browser holds whole."""
FILE_HEAD_BYTES = 4096
"""Bytes at the start of a file by which npz, npy and tables are told apart."""
RESIZED_VALUES = 1 << 26
"""Values of one channel that resizing may make of one image before the centre is cut out."""
TRANSFORMED_VALUES = 1 << 21
"""Values that a transform makes at a time."""
SPOOLED_BYTES = 128 << 20
"""The most bytes of an array that are held in memory."""
BLOCK_BYTES = 16 << 20
"""Bytes that are handled at a time."""
PIECE_BYTES = 1 << 16
"""Bytes written at a time. The system keeps them together, and a map then has all of them in memory for one image."""
READ_NUMBERS = 1 << 24
"""Numbers read at a time."""
SCALED_NUMBERS = 1 << 24
"""Numbers looked at at a time."""
PASS_NUMBERS = 1 << 25
"""Numbers that the layers of one pass may leave behind."""
GRADIENT_NUMBERS = 1 << 22
"""Numbers of the images' gradients that are in memory at a time."""
SCORED_IMAGES = 2048
"""Images whose gradients are computed at a time."""
GATHERED_ENTRIES = 1 << 16
"""Weights of a layer that single images are compared on, at most: of more, so many are taken evenly."""
WHITENED_NUMBERS = 1 << 24
"""Numbers of a block that the statistics rest on: of more images, so many are taken evenly."""
FLOAT_BYTES = 256 << 20
"""Bytes up to which images are kept as float32."""
DEVICE_SHARE = 0.5
"""Share of the free memory of a graphics card that images may take: scores, maps and gradients need the rest."""
LOOKED_AT_NUMBERS = 1 << 22
"""Numbers looked at at a time, where all images are looked at once."""
DECIDED_PIXELS = 1 << 25
"""Numbers of the images decided at a time."""
FEATURE_NUMBERS = 1 << 26
"""Features that are in memory at a time."""
BACKBONE_PIXELS = 32 * 224 * 224
"""Pixels that pass a backbone at once on a graphics card: 32 photographs, whose maps take a few hundred megabytes in a
ResNet-50."""
ONNX_BYTES = (1 << 31) - 1
"""Bytes of an ONNX file: protobuf reads no more."""
KEPT_FEATURES_BYTES = 2 << 30
"""Bytes of features that are kept between commands: 270,000 pictures of 1,952 numbers."""
BACKBONE_PIXELS_CPU = 4 * 224 * 224
"""The same on a processor: four photographs. A single one passes as one of so many, and must not take longer than need
be."""
GATHERED_ROWS = 256
"""Rows of a spooled array that are copied before their pages are given back."""
FEATURE_IMAGES = 128
"""Images whose features are computed at a time, a whole number of the blocks that decide; so few that these, and their
maps, stay near the processor."""
SUMMED_FEATURES = 2048
"""Features up to which the folds' scatters are kept and summed; of more, they take memory and save no time."""
PASS_IMAGES = 4096
"""Images of one pass without gradients, and of other sums over all images, whatever their size."""
DEVIATING_IMAGES = 2048
"""Images whose deviations from each task are computed at a time."""
RANGE_IMAGES = 1024
"""Images whose largest number is looked for at a time."""
DECIDED_IMAGES = 2000
"""Images decided at a time; of a larger batch, so many decide on its task."""
EXPLAINED_IMAGES = 256
"""Images whose candidates are objects at a time."""
ARCHITECTURE_WIDTH = 65_536
"""Units or channels of a layer: one more input costs so many weights."""
ARCHITECTURE_WEIGHTS = 100_000_000
"""Shared weights of an expert, which are held whole, with masks and scores of their size."""
