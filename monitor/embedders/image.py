"""Photographs and scans, by an image encoder in ONNX: MobileNet, SqueezeNet, VGG16, ViT, the image tower of CLIP."""

from __future__ import annotations

import binascii
import hashlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from detectors.errors import InvalidSettings, MissingExtra
from detectors.reference import ANGULAR
from monitor.embedders.embedder import Columns, Embedded, Floats, Problem, fingerprint
from monitor.embedders.onnx_model import Tensor, load_model, unit_length, unusable
from monitor.pointers import FieldName

Layout = Literal["nchw", "nhwc"]
_Pixels = npt.NDArray[np.uint8]

# What Pillow may open. Others run programs (EPS) or hold no picture of their own.
_FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MOST_BYTES: Final = 64 << 20  # of one file, base64 text or body
_EMBEDDINGS: Final = ("image_embeds", "sentence_embedding")
_MOST_ROWS: Final = 4  # at a time; more gained little, and take longer to try out
_EXPORT: Final = "Export the encoder of images alone: docs/embedders.md"


@dataclass(frozen=True, slots=True)
class _Preparation:
    """How a published family of encoders wants its pixels: (pixel x scale - mean) / std."""

    size: tuple[int, int]
    crop: float
    interpolation: Literal["bilinear", "bicubic"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: Literal["rgb", "bgr"]


_PRESETS: Final = {
    # torchvision and most of timm; short side 256, then 224 x 224 of its middle
    "imagenet": _Preparation(
        (224, 224), 224 / 256, "bilinear", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rgb"
    ),
    # Radford et al. (2021)
    "clip": _Preparation(
        (224, 224),
        1.0,
        "bicubic",
        1 / 255,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        "rgb",
    ),
    # VGG (Simonyan and Zisserman 2015) and other models of Caffe and Keras' mode "caffe"
    "caffe": _Preparation((224, 224), 224 / 256, "bilinear", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr"),
    # Keras' mode "tf" and TensorFlow's MobileNet: -1 to 1
    "tf": _Preparation((224, 224), 224 / 256, "bilinear", 1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "rgb"),
}


class ImageSettings(BaseModel, frozen=True, extra="forbid"):
    """An image file in or beside the record, by any image encoder in ONNX (extra: image)."""

    kind: Literal["image"] = "image"
    field: FieldName = Field(description="where the image stands")
    model: Path = Field(description="the .onnx file of the encoder")
    encoding: Literal["bytes", "base64", "path"] = Field(
        "base64", description="bytes: of an image file; base64: of them, a data: URL too; path: of a file under root"
    )
    root: Path | None = Field(None, description="directory of the files, for encoding path; nothing outside is read")
    output: str | None = Field(
        None, description="an output of the model, or a value inside of it; without it, by name; maps are averaged"
    )
    preset: Literal["imagenet", "clip", "caffe", "tf"] = Field(
        "imagenet", description="how the encoder wants its pixels; caffe: VGG16; the keys below change single things"
    )
    size: tuple[int, int] | None = Field(None, description="[height, width]; without it, what the model says, or 224")
    resize: Literal["shortest", "stretch"] = Field(
        "shortest", description="shortest: the middle of the image is cut out; stretch: all of it, in other proportions"
    )
    crop: float | None = Field(
        None, gt=0, le=1, description="shortest: share of the shorter side that is kept; 224/256 with imagenet"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(None, description="how sizes are changed")
    scale: float | None = Field(None, gt=0, description="factor of pixels 0 to 255, before mean and std; 1/255")
    mean: tuple[float, float, float] | None = Field(None, description="taken off each channel, after scale")
    std: tuple[float, float, float] | None = Field(None, description="what each channel is divided by")
    layout: Layout | None = Field(None, description="order of axes; without it, where the model has 3 channels")
    channels: Literal["rgb", "bgr"] | None = Field(None, description="order of channels, of mean and std, too")
    normalise: bool = Field(False, description="scale vectors to unit length; matters where they are joined")
    max_pixels: int = Field(
        50_000_000, ge=1, description="larger images are a problem of their record; 3 bytes of memory for each pixel"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ImageSettings:
        if (self.root is not None) != (self.encoding == "path"):
            raise ValueError("root and encoding: path go together; paths in records are relative to root")
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise ValueError("size: expected [height, width] of 1 to 4096, such as [224, 224]")
        if self.std is not None and 0.0 in self.std:
            raise ValueError("std: a channel cannot be divided by 0")
        return self

    def build(self) -> ImageEmbedder:
        """Make the embedder, and load the model.

        Raises:
            MissingExtra: a package is not installed.
            InvalidSettings: the model cannot be used, or is no encoder of images.
        """
        return ImageEmbedder(self)


class ImageEmbedder:
    """Embeds images by an encoder in ONNX.

    Up to 4 images run at a time. When the model is loaded, it is tried out on this machine whether a row's numbers are
    then the same to the last bit as alone; where they are not, and where the model quantises activations by one scale
    for all rows, each image runs alone.
    """

    kind = "image"
    learns = False
    geometry = ANGULAR

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self.fields = (settings.field,)
        self._read = _Reader(settings)
        self._model = load_model(settings.model, output=settings.output, extra="image")
        self._input = self._only_input()
        self._layout = self._find_layout()
        self._wanted = self._find_preparation()
        self._model.rows_allowed()
        self._output, self.dimension = self._try_out()
        height, width = self._wanted.size
        unlike = np.frombuffer(hashlib.shake_256(b"driftd").digest(_MOST_ROWS * height * width * 3), dtype=np.uint8)
        fed = self._fed([self._arranged(each) for each in unlike.reshape(_MOST_ROWS, height, width, 3)])
        self._most_rows = _MOST_ROWS if self._model.rows_stay_apart(fed, self._output) else 1

    def fit(self, columns: Columns) -> None:
        """The encoder is trained already."""

    def state(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        """There is nothing to restore."""

    def fingerprint(self) -> str:
        # Other versions of ONNX Runtime, and other processors, move last bits: canaries allow for it.
        settings = self._settings.model_dump(include={"resize", "normalise"}) | {
            "model": self._model.digest,
            "output": self._output,
            "layout": self._layout,
            "prepared": self._wanted,
            "pillow": self._read.version.split(".")[0],
        }
        return fingerprint(self.kind, settings, b"")

    def embed(self, columns: Columns) -> Embedded:
        (column,) = columns
        vectors = np.zeros((len(column), self.dimension), dtype=np.float32)
        problems: dict[int, Problem] = {}
        waiting: list[tuple[int, npt.NDArray[Any]]] = []
        for row, value in enumerate(column):
            try:
                waiting.append((row, self._arranged(self._prepared(value))))
            except _Unreadable as problem:
                problems[row] = Problem(row, problem.reason, problem.detail)
            if len(waiting) == _MOST_ROWS:
                self._encode(waiting, vectors)
                waiting = []
        self._encode(waiting, vectors)
        return Embedded(vectors, unusable(vectors, self._settings.field, problems))

    def picture(self, value: object) -> _Pixels | None:
        """One record's image for the eye: uint8 (h, w, 3), as the encoder sees it; None where it is broken.

        Args:
            value: the raw value of the field.
        """
        try:
            return self._prepared(value)
        except _Unreadable:
            return None

    def _encode(self, images: Sequence[tuple[int, npt.NDArray[Any]]], vectors: Floats) -> None:
        for first in range(0, len(images), self._most_rows):
            run = images[first : first + self._most_rows]
            (found,) = self._model.run(self._fed([image for _, image in run]), [self._output])
            for (row, _), result in zip(run, found, strict=True):
                vector = self._pool(result)
                vectors[row] = unit_length(vector) if self._settings.normalise else vector

    def _pool(self, result: Floats) -> Floats:
        """Vectors as they are; the mean over a map's places, over a transformer's tokens."""
        if result.ndim == 1:
            return result
        if result.ndim == 3 and self._layout == "nchw":
            places = np.ascontiguousarray(result.reshape(len(result), -1).T)
        else:
            places = result.reshape(-1, result.shape[-1])
        mean: Floats = places.sum(axis=0) / np.float32(len(places))
        return mean

    def _prepared(self, value: object) -> _Pixels:
        """The image at the size of the encoder, uint8 (h, w, 3), channels as red, green, blue.

        Raises:
            _Unreadable: with what is wrong with it.
        """
        wanted, settings = self._wanted, self._settings
        return self._read.image(
            value, wanted.size, None if settings.resize == "stretch" else wanted.crop, wanted.interpolation
        )

    def _arranged(self, pixels: _Pixels) -> npt.NDArray[Any]:
        """Pixels as the encoder wants them, of one image."""
        wanted = self._wanted
        if wanted.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        if self._input.type == "tensor(uint8)":
            arranged: npt.NDArray[Any] = pixels
        else:
            mean, std = (np.array(each, dtype=np.float32) for each in (wanted.mean, wanted.std))
            arranged = (pixels.astype(np.float32) * np.float32(wanted.scale) - mean) / std
        return arranged.transpose(2, 0, 1) if self._layout == "nchw" else arranged

    def _fed(self, images: Sequence[npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {self._input.name: np.stack(images).astype(_TYPES[self._input.type], copy=False)}

    def _only_input(self) -> Tensor:
        model, path = self._model, self._settings.model
        images = [each for each in model.inputs.values() if len(each.shape) == 4]
        model.check_inputs([each.name for each in images[:1]] or ["one image"], hint=_EXPORT)
        if images[0].type not in _TYPES:
            raise InvalidSettings(
                f"{path} takes images as {images[0].type}; expected one of {', '.join(_TYPES)}.", hint=_EXPORT
            )
        return images[0]

    def _find_layout(self) -> Layout:
        shape = self._input.shape
        fits: list[Layout] = [name for name, axis in _CHANNEL_AXES.items() if shape[axis] in (3, None)]
        clear: list[Layout] = [name for name, axis in _CHANNEL_AXES.items() if shape[axis] == 3]
        layout = self._settings.layout or (clear or fits or ["nchw"])[0]
        if layout not in fits:
            raise InvalidSettings(
                f"{self._settings.model} takes {self._input}; with layout: {layout}, three channels do not fit there.",
                hint=f"Set layout: {fits[0]}." if fits else "Only encoders of colour images can be used.",
            )
        return layout

    def _find_preparation(self) -> _Preparation:
        settings, preset = self._settings, _PRESETS[self._settings.preset]
        shape = self._input.shape
        height, width = (shape[2], shape[3]) if self._layout == "nchw" else (shape[1], shape[2])
        asked = settings.size or (height or preset.size[0], width or preset.size[1])
        if (height or asked[0], width or asked[1]) != asked:
            raise InvalidSettings(
                f"{settings.model} takes {self._input}, and size is {list(asked)}.",
                hint=f"Set size: [{height or asked[0]}, {width or asked[1]}], or leave it out.",
            )
        return _Preparation(
            asked,
            settings.crop or preset.crop,
            settings.interpolation or preset.interpolation,
            settings.scale or preset.scale,
            settings.mean or preset.mean,
            settings.std or preset.std,
            settings.channels or preset.channels,
        )

    def _try_out(self) -> tuple[str, int]:
        """The output to read and the dimension, from one run with a grey image."""
        grey = np.full((*self._wanted.size, 3), 127, dtype=np.uint8)
        found = dict(
            zip(
                self._model.outputs,
                self._model.try_run(
                    self._fed([self._arranged(grey)]),
                    self._model.outputs,
                    what=f"an image of {list(self._wanted.size)}",
                    hint="Set size and layout to what the model was trained with.",
                ),
                strict=True,
            )
        )
        usable = [name for name, each in found.items() if each.ndim in (2, 3, 4) and len(each) == 1 and each.size]
        usable.sort(key=lambda name: (name not in _EMBEDDINGS, found[name].ndim != 2))
        output = self._settings.output or (usable[0] if usable else None)
        if output is None or output not in usable:
            shown = ", ".join(f"{name} {list(each.shape)}" for name, each in found.items())
            raise InvalidSettings(
                f"{self._settings.model} gives no vector for each image; for one image it gives {shown}.",
                hint="Name another output, or a value inside of the model as netron.app shows it.",
            )
        return output, len(self._pool(found[output][0]))


_CHANNEL_AXES: Final[dict[Layout, int]] = {"nchw": 1, "nhwc": 3}
_TYPES: Final[dict[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


class _Unreadable(Exception):
    """A record without an image that can be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Reader:
    """Reads images with Pillow."""

    def __init__(self, settings: ImageSettings) -> None:
        try:
            self._pillow: Any = importlib.import_module("PIL.Image")
            self._upright: Callable[[Any], Any] = importlib.import_module("PIL.ImageOps").exif_transpose
            self.version: str = importlib.import_module("PIL").__version__
        except ImportError as error:
            raise MissingExtra(
                'The embedder "image" reads images with Pillow, which is not installed.',
                hint="Install it: pip install 'driftd[image]'",
            ) from error
        self._pillow.init()
        self._formats = [name for name in _FORMATS if name in self._pillow.OPEN]
        self._settings = settings
        self._root = None if settings.root is None else settings.root.resolve()
        if self._root is not None and not self._root.is_dir():
            raise InvalidSettings(
                f"root {settings.root} is no directory.", hint="Name the directory that the paths are relative to."
            )

    def image(self, value: object, size: tuple[int, int], crop: float | None, interpolation: str) -> _Pixels:
        """The image at a size, uint8 (h, w, 3); see `ImageEmbedder._prepared`.

        Args:
            size: height and width.
            crop: share of the shorter side of its middle that is kept; None: all of it, stretched.
        """
        field, most = self._settings.field, self._settings.max_pixels
        content = self._content(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", self._pillow.DecompressionBombWarning)
                opened = self._pillow.open(io.BytesIO(content), formats=self._formats)
            if opened.width * opened.height > most:
                raise _Unreadable(
                    "bad_value", f"{field} is an image of {opened.width} x {opened.height}; at most {most} pixels."
                )
            image = self._colours(self._upright(opened))
            box = None if crop is None else _middle(image.width, image.height, size, crop)
            return np.asarray(image.resize(size[::-1], self._pillow.Resampling[interpolation.upper()], box=box))
        except _Unreadable:
            raise
        except self._pillow.DecompressionBombWarning as error:
            raise _Unreadable("bad_value", f"{field} is an image of too many pixels; at most {most}.") from error
        except self._pillow.DecompressionBombError as error:
            raise _Unreadable("bad_value", f"{field} is an image of too many pixels; at most {most}.") from error
        except Exception as error:  # what Pillow raises at broken files depends on the format
            raise _Unreadable("bad_value", f"{field} is no image that can be read: {type(error).__name__}.") from error

    def _colours(self, image: Any) -> Any:
        """Red, green, blue; transparency on white, as a page would show it; 16 bits by their upper 8."""
        if image.mode.startswith("I"):
            wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
            return self._pillow.fromarray(wide.astype(np.uint8)).convert("RGB")
        if image.mode == "F":
            raise _Unreadable("bad_value", f"{self._settings.field} is an image of floats, which have no stated range.")
        if image.has_transparency_data:
            seen = image.convert("RGBA")
            white = self._pillow.new("RGBA", seen.size, "white")
            white.alpha_composite(seen)
            image = white
        return image.convert("RGB")

    def _content(self, value: object) -> bytes:
        field, encoding = self._settings.field, self._settings.encoding
        if value is None:
            raise _Unreadable("missing_field", f"{field} is missing.")
        if encoding == "bytes":
            if not isinstance(value, bytes | bytearray | memoryview):
                raise _Unreadable("bad_value", f"{field} is not bytes.")
            content = bytes(value)
        elif not isinstance(value, str):
            raise _Unreadable("bad_value", f"{field} is not text.")
        else:
            content = self._decoded(value) if encoding == "base64" else self._file(value)
        if not content:
            raise _Unreadable("bad_value", f"{field} is empty.")
        if len(content) > _MOST_BYTES:
            raise _Unreadable("bad_value", f"{field} has {len(content)} bytes; at most {_MOST_BYTES}.")
        return content

    def _decoded(self, text: str) -> bytes:
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise _Unreadable("bad_value", f"{self._settings.field} is not base64 text.") from error

    def _file(self, place: str) -> bytes:
        field = self._settings.field
        assert self._root is not None
        try:
            path = (self._root / place).resolve()
            if not path.is_relative_to(self._root):
                raise _Unreadable("bad_value", f"{field} leads out of the directory of images.")
            if not path.is_file():
                raise _Unreadable("bad_value", f"{field} names no file in the directory of images.")
            with path.open("rb") as file:
                return file.read(_MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise _Unreadable("bad_value", f"{field} names a file that cannot be read.") from error


def _middle(width: int, height: int, size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """The largest part around an image's middle with a size's proportions, times ``crop``: left, top, right, bottom."""
    factor = min(width / size[1], height / size[0]) * crop
    wide, high = size[1] * factor, size[0] * factor
    left, top = (width - wide) / 2, (height - high) / 2
    return max(0.0, left), max(0.0, top), min(float(width), left + wide), min(float(height), top + high)
