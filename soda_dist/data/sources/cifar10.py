"""CIFAR-10: the published binary batches (a folder or a .tar.gz), or Parquet with an image and a label column.

Raw pixels of binary batches become PNG, which is lossless; Parquet images keep their bytes.

Example:
    python jobs/prepare_data.py cifar10 --source cifar-10-binary.tar.gz --data data/cifar10
"""

from soda_dist.data.formats.cifar_binary import Layout, open_archive, open_batches
from soda_dist.data.formats.listing import list_files
from soda_dist.data.formats.parquet_tables import IMAGE_COLUMNS, LABEL_COLUMNS, ImageTables
from soda_dist.data.formats.table_labels import LabelColumn
from soda_dist.data.source import Options, Part, Source
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LAYOUT = Layout(
    inner="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    batches=(*((f"data_batch_{i}.bin", "train") for i in range(1, 6)), ("test_batch.bin", "test")),
    labels=(("label", CLASSES),),
    main_label="label",
)
SPLITS = ("train", "test")
LAYOUTS = f"{LAYOUT.inner}/*.bin, {LAYOUT.archive}, or {{train,test}}/*.parquet"


def open_source(uri: str, options: Options) -> Source:
    """Open CIFAR-10 at `uri` in any of its layouts; a `UserError` if none matches."""
    if uri.endswith((".tar.gz", ".tgz")):
        return open_archive(uri, LAYOUT, LAYOUTS)
    folder = open_folder(uri)
    batches = open_batches(folder, LAYOUT)
    if batches:
        return batches
    files = [(split, entry.name) for split in SPLITS for entry in list_files(folder, f"{split}/")]
    parts = tuple(Part(split, name) for split, name in files if name.endswith(".parquet"))
    if not parts:
        raise UserError(uri, "none of CIFAR-10's layouts", LAYOUTS, "correct the path")
    label = LabelColumn.of_names("label", LABEL_COLUMNS, CLASSES)
    return ImageTables(folder, parts, images=IMAGE_COLUMNS, labels=(label,), main_label="label", rows_per_group=256)
