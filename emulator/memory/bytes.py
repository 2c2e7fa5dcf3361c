"""Memory as an array of bytes, also read and written in wider words."""

import numpy as np

from nvfp4.emulator.lanes import DTYPES


class Bytes:
    """An array of bytes with views in wider words where its address allows them."""

    def __init__(self, data: np.ndarray, aligned: bool) -> None:
        self.data = data
        self._views = {8: data}
        if aligned:
            for bits in (16, 32, 64):
                whole = len(data) // (bits // 8) * (bits // 8)
                self._views[bits] = data[:whole].view(DTYPES[bits])

    @property
    def chunks(self) -> np.ndarray:
        """View the bytes as [n, 2] words of 8: 16 bytes a row, as the async proxy moves them."""
        return self._views[64][: len(self.data) // 16 * 2].reshape(-1, 2)

    def gather(self, offsets: np.ndarray, bits: int, count: int) -> np.ndarray:
        """Read [offsets, count] elements of `bits` bits."""
        size = bits // 8
        view = self._views.get(bits)
        if view is not None:
            return view[(offsets // size)[:, None] + np.arange(count)]
        return self.data[offsets[:, None] + np.arange(size * count)].view(DTYPES[bits])

    def scatter(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Write [offsets, count] elements."""
        size, count = values.itemsize, values.shape[1]
        view = self._views.get(size * 8)
        if view is not None:
            view[(offsets // size)[:, None] + np.arange(count)] = values
        else:
            raw = np.ascontiguousarray(values).view(np.uint8)
            self.data[offsets[:, None] + np.arange(size * count)] = raw
