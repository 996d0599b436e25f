"""Images from a folder: any folder of images, and CelebA in its usual layouts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from circuits.data.image_sets import ImageSet, to_pixels
from circuits.naming import nearest_folder
from circuits.seeds import numpy_generator

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_CELEBA_LAYOUTS = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "celeba/img_align_celeba",
    "CelebAMask-HQ/CelebA-HQ-img",
    "CelebA-HQ-img",
    "",
)
_UNKNOWN = "Whether the model saw these images in training is not known to this program."


def image_folder(root: str | Path, size: int, channels: int, *, limit: int | None = None) -> ImageSet:
    """Images of a folder and its subfolders, in a fixed random order (so that a prefix is a fair sample of all).

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a file that is named like an image but is none; it is named.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}{nearest_folder(folder)}")
    # Hidden files are leftovers of file managers, which may be named like images.
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not files:
        raise FileNotFoundError(f"no images in {folder} (looked for {', '.join(sorted(SUFFIXES))}, subfolders too)")
    order = numpy_generator(0, "folder order").permutation(len(files))
    chosen = [files[i] for i in order[:limit]]
    return ImageSet(
        name=folder.name,
        images=torch.from_numpy(np.stack([_pixels(file, str(file), size, channels) for file in chosen])),
        ids=tuple(file.relative_to(folder).as_posix() for file in chosen),
        held_out=None,
        trained_on=_UNKNOWN,
    )


def celeba(root: str | Path, size: int, channels: int, *, limit: int | None = None) -> ImageSet:
    """CelebA from a local folder in a usual layout (aligned JPEGs), or from a hub data set given as ``owner/name``.

    Raises:
        FileNotFoundError: no such folder and no such data set on the hub.
        ValueError: an unreadable image, or a hub data set without a column ``image``.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        layout = next(
            layout for layout in _CELEBA_LAYOUTS if (folder / layout).is_dir()
        )  # the last is the folder itself
        return image_folder(folder / layout, size, channels, limit=limit)
    if str(root).count("/") == 1 and not str(root).startswith((".", "/", "~")):
        return _hub_data_set(str(root), size, channels, limit)
    raise FileNotFoundError(
        f"no folder {folder}, and {str(root)!r} is no hub data set (owner/name){nearest_folder(folder)}"
    )


def _hub_data_set(name: str, size: int, channels: int, limit: int | None) -> ImageSet:
    """Download image or Parquet files of a hub data set; no code of the data set is run."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES] + ["*.parquet"]
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # every client error means the same to the user: not to be had
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise FileNotFoundError(
            f"{name!r} is no local folder and could not be fetched from the hub: {reason}"
        ) from error
    tables = sorted(folder.rglob("*.parquet"))
    if not tables:
        return image_folder(folder, size, channels, limit=limit)
    return _from_parquet(tables, size, channels, limit)


def _from_parquet(tables: list[Path], size: int, channels: int, limit: int | None) -> ImageSet:
    """Images of the hub's Parquet layout (a column ``image`` of ``{bytes, path}``), in the order of the tables."""
    rows = islice(_encoded_images(tables), limit)
    images = {name: _pixels(io.BytesIO(data), name, size, channels) for name, data in rows}
    if not images:
        raise ValueError(f"no images in {tables[0].parent}")
    return ImageSet("celeba", torch.from_numpy(np.stack(list(images.values()))), tuple(images), None, _UNKNOWN)


def _encoded_images(tables: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(name, file content) of every image."""
    import pyarrow.parquet as pq

    for table in tables:
        file, index = pq.ParquetFile(table), 0
        if "image" not in file.schema_arrow.names:
            raise ValueError(f"{table.name} has no column 'image'; columns: {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=64, columns=["image"]):
            for row in batch.column("image").to_pylist():
                if not isinstance(row, dict) or not row.get("bytes"):
                    raise ValueError(
                        f"{table.name}, row {index}: expected an image as {{bytes, path}}, got {row!r:.60}"
                    )
                yield f"{table.stem}_{index}", row["bytes"]
                index += 1


def _pixels(file: Path | io.BytesIO, name: str, size: int, channels: int) -> np.ndarray:
    """An image file at the model's size; errors name it."""
    try:
        with Image.open(file) as image:
            return to_pixels(image, size, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image ({error})") from error
