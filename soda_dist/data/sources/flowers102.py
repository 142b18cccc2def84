"""Oxford Flowers 102: jpg/image_00001.jpg and so on, in the published splits.

A folder, or 102flowers.tgz read in place; next to the images, or in torchvision's `flowers-102/`, imagelabels.mat
(`labels`, 1..102, by image number) and setid.mat (`trnid`, `valid`, `tstid`, image numbers from 1): 1,020 training,
1,020 validation and 6,149 test images. With `all=true` a further split `all` has these 8,189 images once more, to be
trained on without labels (`data.train_split=all`). Published at https://www.robots.ox.ac.uk/~vgg/data/flowers/102/.

A compressed archive (345 MB) is inflated once to list each split, and once per 256 MiB of a shard's images, which are
held in memory. Some archives of this name are uncompressed tars; those allow random access.

Example:
    python jobs/prepare_data.py flowers102 --source flowers-102 --data data/flowers102 all=true
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.data import source as contract
from soda_dist.data.formats.class_folders import label_index
from soda_dist.data.formats.file_trees import Tree, open_trees
from soda_dist.data.formats.matlab import read_numbers
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source
from soda_dist.errors import UserError

ARCHIVES, ROOTS, IMAGES = ("102flowers.tgz",), ("", "flowers-102/"), "jpg"
LABELS, SETS = "imagelabels.mat", "setid.mat"
SPLITS, ALL = {"train": "trnid", "val": "valid", "test": "tstid"}, "all"
REMEDY = "download it again"
LAYOUTS = f"{IMAGES}/image_00001.jpg ... or {ARCHIVES[0]}, with {LABELS} and {SETS}"
CLASSES = tuple(
    """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
    bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
    globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower,
    fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke,
    sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya,
    cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia,
    bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula,
    sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata,
    japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris,
    windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus,
    toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
    watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow,
    mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily""".replace("\n   ", "").split(", ")
)
"""Class names by label, in the publishers' order."""


class Options(contract.Options):
    all: bool = False
    """Add the split `all`, of every image; the published splits stay what they are."""


@dataclass(frozen=True)
class Flowers102:
    """Rows sorted by image number; the import shuffles them."""

    tree: Tree
    root: str
    all: bool

    @property
    def contents(self) -> Contents:
        return Contents.with_labels({"label": Label(kind="class", names=CLASSES)}, "label", shuffled=True)

    def parts(self) -> Sequence[Part]:
        more = [Part(ALL, SETS)] if self.all else []
        return [*(Part(split, name) for split, name in SPLITS.items()), *more]

    def index(self, part: Part) -> pa.Table:
        numbers, labels = self.numbers()[part.split], self._matrix(LABELS, "labels")
        wrong = next((int(n) for n in numbers if not 1 <= n <= len(labels) or not 1 <= labels[n - 1] <= 102), None)
        if wrong is not None:
            got = f"no label 1..{len(CLASSES)} of image {wrong}"
            raise UserError(LABELS, got, f"one for each image in {SETS}", REMEDY)
        found = self.tree.find([f"{self.root}{IMAGES}/image_{number:05d}.jpg" for number in numbers])
        return label_index(found, "label", (labels[numbers - 1] - 1).tolist())

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return self.tree.rows(index, ["label"])

    def numbers(self) -> dict[str, NDArray[np.int64]]:
        """List the image numbers per split, ascending.

        Raises:
            UserError: a missing or invalid file.
        """
        found = {split: np.sort(self._matrix(SETS, name)) for split, name in SPLITS.items()}
        numbers = np.concatenate(list(found.values()))
        if len(np.unique(numbers)) < len(numbers):
            raise UserError(SETS, "an image twice", "each image in one split", REMEDY)
        return found | ({ALL: np.sort(numbers)} if self.all else {})

    def _matrix(self, name: str, variable: str) -> NDArray[np.int64]:
        """Read a variable of a .mat file, int64 [n]."""
        inside = self.tree.read([self.root + name])
        uri = self.tree.folder.file_uri(self.root + name)
        try:
            return read_numbers(inside.get(self.root + name) or self.tree.folder.read(name), variable)
        except FileNotFoundError:
            raise UserError(uri, "a missing file", LAYOUTS, "add it") from None
        except ValueError as error:
            raise UserError(uri, f"no {variable} ({error})", "the published file", REMEDY) from None


def open_source(uri: str, options: Options) -> Source:
    """Open Flowers 102 at `uri`.

    Raises:
        UserError: no images, or a missing or invalid .mat file.
    """
    for tree in open_trees(uri, ARCHIVES):
        for root in ROOTS:
            if IMAGES in tree.folders(root):
                source = Flowers102(tree, root, options.all)
                source.numbers()
                return source
    raise UserError(uri, "no images of Flowers 102", LAYOUTS, "correct the path")
