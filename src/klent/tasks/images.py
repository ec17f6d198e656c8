"""Images of data, beside the noise that a denoiser begins from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from klent.errors import DataError, first_line


def read_images(name: str, size: int) -> Tensor:
    """The images of a NumPy file, ``[M, size]`` float32.

    Args:
        name: the file: one image per row.
        size: coordinates that an image must have.

    Raises:
        DataError: there is no such file, it is no array of numbers, or its images are of another size.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"task.images: there is no file at {name}. Write one with numpy.save(FILE, images)")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"task.images: {name}: {first_line(error)}. Write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != size or not len(array):
        shape = list(array.shape) if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(
            f"task.images: {name} has shape {shape}, expected [M, {size}]: one image of {size} coordinates per row. "
            "Flatten them with images.reshape(len(images), -1)"
        )
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(
            f"task.images: {name} has dtype {array.dtype}, or numbers that are not finite. Write finite floats"
        )
    return torch.from_numpy(array.astype(np.float32))
