"""Pictures of a run, embedded and sorted by topic."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import read_limited
from soda_dist.errors import UserError
from soda_dist.report.measures import plain_text
from soda_dist.runs.results import Stored

PICTURE_BYTES = 64 << 20
"""Size limit of an embedded picture."""
MOST_UNKNOWN, MOST_OLDER = 24, 8
"""Pictures of unknown names, and older pictures of validation, that a page embeds."""
TOPICS = {
    "Reconstructions": {
        "reconstruction": (
            "Columns: the source view, its reconstructions from the same noise with increasing guidance, another "
            "sample from the same latent, and a sample without a latent."
        ),
        "sweep": (
            "Similarity of reconstructions to the originals, by guidance and number of sampling steps. The filled dot "
            "is the run's own setting; bars are one standard error over images. All points share images and noise."
        ),
        "denoising": "Denoising steps: the noisy state and the clean image predicted from it.",
    },
    "Samples": {"samples": "Unconditional samples."},
    "Novel views": {
        "novel_views": "Held-out objects: the source views, the sampled novel views and, below, the ground truth.",
    },
    "Disentanglement": {
        "importance": "Importance of each latent dimension for each factor.",
        "sections": "Share of each factor's importance in each section of the latent.",
    },
    "Latent tools": {
        "interpolation": "Interpolation between latents of two images, linear and spherical; each row uses one noise.",
        "directions": ("Latents moved along principal directions, in standard deviations (with explained variance)."),
        "sections_traversal": (
            "Latents moved along the first principal direction of each section; section 0 modulates the outermost "
            "layers. In brackets: its share of the section's variance."
        ),
        "mixing": ("Sections of A's latent replaced by B's one by one: outermost layers first, and in reverse order."),
        "resampled": "One section of each latent replaced by that of a random training image.",
        "masking": "Samples with parts of the latent masked; each row uses the same noise.",
        "attributes": ("Latents moved along the linear probe's direction of an attribute, in standard deviations."),
    },
}
"""Topic -> picture -> caption."""
CAPTIONS = {name: caption for captions in TOPICS.values() for name, caption in captions.items()}
OTHERS = "Other pictures"


@dataclass(frozen=True)
class Picture:
    """An embedded picture.

    Attributes:
        source: a data URI.
        width, height: pixels; 0 if unknown.
    """

    title: str
    caption: str
    source: str
    step: int
    width: int
    height: int


def pictures_by_topic(run: Folder, found: Iterable[Stored], problems: list[str]) -> dict[str, list[Picture]]:
    """Embed the newest picture of each name, by topic; one that cannot be read adds a line to `problems`."""
    newest = {(stored.title, stored.ema): stored for stored in found}
    topics: dict[str, list[Picture]] = {}
    for topic, captions in TOPICS.items():
        stored = [newest.pop((name, ema)) for name in captions for ema in (True, False) if (name, ema) in newest]
        if embedded := [picture for each in stored if (picture := embed(run, each, problems))]:
            topics[topic] = embedded
    others = list(newest.values())[:MOST_UNKNOWN]
    if embedded := [picture for each in others if (picture := embed(run, each, problems))]:
        topics[OTHERS] = embedded
    return topics


def recent(found: list[Stored]) -> list[Stored]:
    """Choose the newest of one kind of pictures and a few older ones, evenly spread, newest first."""
    backwards = found[::-1]
    if len(backwards) <= MOST_OLDER + 1:
        return backwards
    places = {0, *(round(1 + at * (len(backwards) - 2) / (MOST_OLDER - 1)) for at in range(MOST_OLDER))}
    return [backwards[place] for place in sorted(places)]


def embed(run: Folder, stored: Stored, problems: list[str]) -> Picture | None:
    """Embed one picture; None, and a line in `problems`, if it cannot be read."""
    try:
        content = read_limited(run, stored.name, PICTURE_BYTES)
    except FileNotFoundError:  # removed since it was listed
        return None
    except UserError as error:
        problems.append(str(error))
        return None
    width, height = _size(content)
    title = plain_text(stored.title.replace("_", " "))
    caption = CAPTIONS.get(stored.title, "") + ("" if stored.ema else " Without EMA.")
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(title, caption.strip() or f"{title}.", source, stored.step, width, height)


def _size(content: bytes) -> tuple[int, int]:
    """Width and height in a PNG's first chunk; zeros for other content."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        return 0, 0
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
