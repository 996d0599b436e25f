"""Images from a folder: any folder of images, and CelebA in its usual layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from circuits.data.image_sets import ImageSet, to_pixels
from circuits.seeds import numpy_generator

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_CELEBA_LAYOUTS = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "celeba/img_align_celeba",
    "CelebAMask-HQ/CelebA-HQ-img",
    "",
)


def image_folder(root: str | Path, size: int, channels: int, *, limit: int | None = None) -> ImageSet:
    """Images of a folder and its subfolders, in a fixed random order (so that a prefix is a fair sample of all).

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a file that is named like an image but is none; it is named.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(f"no images in {folder} (looked for {', '.join(sorted(SUFFIXES))}, subfolders too)")
    order = numpy_generator(0, "folder order").permutation(len(files))
    chosen = [files[i] for i in order[:limit]]
    return ImageSet(
        name=folder.name,
        images=torch.from_numpy(np.stack([_read(file, size, channels) for file in chosen])),
        ids=tuple(str(file.relative_to(folder)) for file in chosen),
        held_out=None,
        trained_on="Whether the model saw these images in training is not known to this program.",
    )


def celeba(root: str | Path, size: int, channels: int, *, limit: int | None = None) -> ImageSet:
    """CelebA from a local folder in a usual layout (aligned JPEGs), or from a hub data set given as ``owner/name``."""
    folder = Path(root).expanduser()
    if folder.is_dir():
        for layout in _CELEBA_LAYOUTS:
            if (folder / layout).is_dir():
                return image_folder(folder / layout, size, channels, limit=limit)
    if str(root).count("/") == 1 and not str(root).startswith((".", "/", "~")):
        return _hub_data_set(str(root), size, channels, limit)
    raise FileNotFoundError(f"no folder {folder}, and {str(root)!r} is no hub data set (owner/name)")


def _hub_data_set(name: str, size: int, channels: int, limit: int | None) -> ImageSet:
    """Download image or Parquet files of a hub data set; no code of the data set is run."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES] + ["*.parquet"]
    folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    tables = sorted(folder.rglob("*.parquet"))
    if not tables:
        return image_folder(folder, size, channels, limit=limit)
    return _from_parquet(tables, size, channels, limit)


def _from_parquet(tables: list[Path], size: int, channels: int, limit: int | None) -> ImageSet:
    import io

    import pyarrow.parquet as pq

    pixels: list[np.ndarray] = []
    ids: list[str] = []
    for table in tables:
        for batch in pq.ParquetFile(table).iter_batches(batch_size=64, columns=["image"]):
            for row in batch.column("image").to_pylist():
                image = Image.open(io.BytesIO(row["bytes"]))
                pixels.append(to_pixels(image, size, channels))
                ids.append(f"{table.stem}_{len(ids)}")
                if limit is not None and len(ids) >= limit:
                    break
            if limit is not None and len(ids) >= limit:
                break
        if limit is not None and len(ids) >= limit:
            break
    unknown = "Whether the model saw these images in training is not known to this program."
    return ImageSet("celeba", torch.from_numpy(np.stack(pixels)), tuple(ids), None, unknown)


def _read(file: Path, size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return to_pixels(image, size, channels)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not a readable image ({error})") from error
