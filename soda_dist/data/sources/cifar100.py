"""CIFAR-100: the published binary version, cifar-100-binary.tar.gz or the folder in it, with both labels.

A record has the label among 20 superclasses, then the one among 100 classes; class names are from the published
coarse_label_names.txt and fine_label_names.txt. For Parquet versions use the kind `parquet`.

Example:
    python jobs/prepare_data.py cifar100 --source cifar-100-binary.tar.gz --data data/cifar100
"""

from soda_dist.data.formats.cifar_binary import Layout, open_archive, open_batches
from soda_dist.data.source import Options, Source
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError

COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
    "household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees "
    "vehicles_1 vehicles_2"
)
FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
LAYOUT = Layout(
    inner="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    batches=(("train.bin", "train"), ("test.bin", "test")),
    labels=(("coarse_label", tuple(COARSE.split())), ("label", tuple(FINE.split()))),
    main_label="label",
)
LAYOUTS = f"{LAYOUT.inner}/{{train,test}}.bin, or {LAYOUT.archive}"


def open_source(uri: str, options: Options) -> Source:
    """Open CIFAR-100 at `uri` in either layout; a `UserError` if neither matches."""
    if uri.endswith((".tar.gz", ".tgz")):
        return open_archive(uri, LAYOUT, LAYOUTS)
    batches = open_batches(open_folder(uri), LAYOUT)
    if not batches:
        raise UserError(uri, "none of CIFAR-100's layouts", LAYOUTS, "correct the path")
    return batches
