"""Image features, computed once per distinct image and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from saccade_server.engine.request import ImageInput
from saccade_server.models.base import ImagePixels
from saccade_server.models.family import ImageFeatures, ServedModel


class FeatureCache:
    """Least recently used features by image digest, within a budget of bytes.

    A request carries its pixels until it ends, so whatever was evicted can be computed again.
    """

    def __init__(self, model: ServedModel, capacity: int, one_by_one: bool = False) -> None:
        """
        Args:
            capacity: in bytes.
            one_by_one: features of an image are its own, bit for bit, whatever is encoded beside.
        """
        self._model = model
        self._capacity = capacity
        self._one_by_one = one_by_one
        self._held: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._bytes = 0
        self.encoded = 0

    def get(self, images: Iterable[ImageInput]) -> dict[str, ImageFeatures]:
        """Features of all ``images``, by digest; missing ones are encoded."""
        wanted = {image.digest: image for image in images}
        found = {digest: self._held[digest] for digest in wanted if digest in self._held}
        missing = [image for digest, image in wanted.items() if digest not in found]
        if missing:
            inputs: list[ImagePixels] = [(_pixels(image), image.grid) for image in missing]
            for image, features in zip(missing, self._encode(inputs), strict=True):
                if features.features.shape[0] != image.length:
                    raise ValueError("the image has another number of features than its span")
                found[image.digest] = _own(features)
            self.encoded += len(missing)
        for digest in wanted:
            self._keep(digest, found[digest])
        return found

    def _encode(self, inputs: list[ImagePixels]) -> list[ImageFeatures]:
        calls = [[one] for one in inputs] if self._one_by_one else [inputs]
        return [features for call in calls for features in self._model.encode_images(call)]

    def _keep(self, digest: str, features: ImageFeatures) -> None:
        if digest not in self._held:
            self._bytes += _size(features)
        self._held[digest] = features
        self._held.move_to_end(digest)
        while self._bytes > self._capacity and len(self._held) > 1:
            _, evicted = self._held.popitem(last=False)
            self._bytes -= _size(evicted)


def _own(features: ImageFeatures) -> ImageFeatures:
    """A copy: families give views, and a view keeps all images encoded with it in memory."""
    return ImageFeatures(features.features.clone(), tuple(t.clone() for t in features.deepstack))


def _pixels(image: ImageInput) -> NDArray[np.float32]:
    return image.pixels.unpack().astype(np.float32, copy=True)  # torch wants writable memory


def _size(features: ImageFeatures) -> int:
    return sum(t.numel() * t.element_size() for t in (features.features, *features.deepstack))
