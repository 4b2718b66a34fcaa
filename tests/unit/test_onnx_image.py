"""Image encoders in ONNX: how pixels are prepared, which files are read, and what a careless user is told."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from connectors.database.rows import ReferenceRow
from connectors.database.store import Store
from detectors.errors import InvalidSettings, MissingExtra
from detectors.reference import Reference
from monitor.embedders.image import ImageEmbedder, ImageSettings
from monitor.reporting import _Space
from monitor.settings import load_settings
from tests.small_models import CHANNELS, image_model

Image: Any = pytest.importorskip("PIL.Image")
onnxruntime: Any = pytest.importorskip("onnxruntime")

HEIGHT, WIDTH = 16, 20  # of the models made here


def photograph(seed: int = 0, size: tuple[int, int] = (40, 50)) -> Any:
    """A smooth image, red to the left, green above: uint8 (h, w, 3)."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    red, green = 255 * (1 - columns / size[1]), 255 * (1 - rows / size[0])
    blue = 127 + 100 * np.sin((seed + 1) * columns / 9)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def file(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    written = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(written, kind, **options)
    return written.getvalue()


def build(path: Path, **settings: Any) -> ImageEmbedder:
    return ImageSettings(**({"field": "/i", "model": path, "encoding": "bytes"} | settings)).build()


def run(path: Path, fed: Any) -> Any:
    """What the runtime says itself to one prepared image."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": fed[np.newaxis]})[0][0]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PREPARED: dict[str, Any] = {
    "imagenet": lambda pixels: (pixels / 255 - MEAN) / STD,
    "clip": lambda pixels: (pixels / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711],
    "caffe": lambda pixels: pixels[:, :, ::-1] - np.array([103.939, 116.779, 123.68]),
    "tf": lambda pixels: pixels / 127.5 - 1,
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("preset", PREPARED)
def test_a_preset_prepares_pixels_as_its_encoders_were_trained(tmp_path: Path, preset: Any, layout: Any) -> None:
    path = image_model(tmp_path / "m.onnx", layout=layout)
    pixels = photograph(size=(HEIGHT, WIDTH))
    fed = PREPARED[preset](pixels.astype(np.float64)).astype(np.float32)
    found = build(path, preset=preset, resize="stretch").embed([[file(pixels)]])
    assert found.problems == []
    close(found.vectors[0], run(path, fed.transpose(2, 0, 1) if layout == "nchw" else fed))


def test_single_keys_change_a_preset(tmp_path: Path) -> None:
    path = image_model(tmp_path / "m.onnx")
    pixels = photograph(size=(HEIGHT, WIDTH))
    asked: dict[str, Any] = {"scale": 0.5, "mean": (1, 2, 3), "std": (2, 4, 8), "channels": "bgr", "resize": "stretch"}
    fed = ((pixels[:, :, ::-1] * 0.5 - [1, 2, 3]) / [2, 4, 8]).astype(np.float32).transpose(2, 0, 1)
    close(build(path, **asked).embed([[file(pixels)]]).vectors[0], run(path, fed))


def test_models_of_bytes_get_pixels_as_they_are(tmp_path: Path) -> None:
    path = image_model(tmp_path / "m.onnx", layout="nhwc", integers=True)
    pixels = photograph(size=(HEIGHT, WIDTH))
    close(build(path, resize="stretch").embed([[file(pixels)]]).vectors[0], run(path, pixels))


def test_the_middle_is_cut_out_or_all_of_it_is_stretched(tmp_path: Path) -> None:
    path = image_model(tmp_path / "m.onnx", size=(16, 16))
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255  # the middle is white, what lies around it black
    seen = build(path, crop=1.0).picture(file(wide))
    assert seen is not None and seen.shape == (16, 16, 3) and (seen > 250).mean() > 0.85
    stretched = build(path, resize="stretch").picture(file(wide))
    assert stretched is not None and 0.3 < (stretched > 127).mean() < 0.4
    # As torchvision does it: the shorter side to 16 / .875, then 16 x 16 of the middle.
    pixels = photograph(size=(60, 80))
    whole = np.asarray(Image.fromarray(pixels).resize((24, 18), Image.Resampling.BILINEAR))[1:17, 4:20]
    found = build(path, crop=16 / 18).picture(file(pixels))
    assert found is not None and np.abs(found.astype(int) - whole.astype(int)).max() <= 1


def test_maps_are_averaged_and_values_inside_the_model_can_be_chosen(tmp_path: Path) -> None:
    content = file(photograph())
    inside = build(image_model(tmp_path / "a.onnx"), output="features").embed([[content]]).vectors
    as_map = build(image_model(tmp_path / "b.onnx", output="features")).embed([[content]]).vectors
    tokens = build(image_model(tmp_path / "c.onnx", output="tokens")).embed([[content]]).vectors
    assert inside.shape == (1, CHANNELS)
    np.testing.assert_allclose(inside, as_map, rtol=1e-5)
    np.testing.assert_allclose(tokens, as_map, rtol=1e-5)


IMAGES: dict[str, Any] = {
    "jpeg": lambda pixels: file(pixels, "JPEG", quality=95),
    "webp": lambda pixels: file(pixels, "WEBP", quality=95),
    "bmp": lambda pixels: file(pixels, "BMP"),
    "cmyk": lambda pixels: file(pixels, "JPEG", "CMYK", quality=95),
    "palette": lambda pixels: file(pixels, "PNG", "P"),
    "opaque": lambda pixels: file(pixels, "PNG", "RGBA"),
    "tiff": lambda pixels: file(pixels, "TIFF"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_the_same_image_in_another_file_is_nearly_the_same_vector(tmp_path: Path, kind: str) -> None:
    embedder = build(image_model(tmp_path / "m.onnx"))
    pixels = photograph()
    first, second, other = embedder.embed(
        [[file(pixels), IMAGES[kind](pixels), file(photograph(5)[::-1, ::-1])]]
    ).vectors
    assert np.linalg.norm(first - second) < 0.2 * np.linalg.norm(first - other)


def test_transparency_16_bits_grey_and_rotation_are_seen_as_people_see_them(tmp_path: Path) -> None:
    embedder = build(image_model(tmp_path / "m.onnx"), resize="stretch", size=(HEIGHT, WIDTH))
    clear = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    seen = embedder.picture(file(clear))
    assert seen is not None and (seen == 255).all()  # nothing on white
    grey = np.full((HEIGHT, WIDTH), 200, dtype=np.uint8)
    for content in (file(grey), file(grey.astype(np.uint16) * 257)):
        seen = embedder.picture(content)
        assert seen is not None and (seen == 200).all()
    upright = photograph(size=(WIDTH, HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: show it a quarter turn to the right
    turned = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(turned, "PNG", exif=exif)
    square = build(image_model(tmp_path / "s.onnx", size=(16, 16)), resize="stretch")
    first, second = square.picture(file(upright)), square.picture(turned.getvalue())
    assert first is not None and second is not None and np.array_equal(first, second)


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_base64_a_data_url_and_a_path_give_the_same_vector(tmp_path: Path) -> None:
    path = image_model(tmp_path / "m.onnx")
    content = file(photograph())
    expected = build(path).embed([[content]]).vectors.tobytes()
    for value in (text(content), f"data:image/png;base64,{text(content)}"):
        assert build(path, encoding="base64").embed([[value]]).vectors.tobytes() == expected
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(content)
    from_file = build(path, encoding="path", root=tmp_path / "images").embed([["a.png"]])
    assert from_file.vectors.tobytes() == expected


def test_nothing_outside_of_the_directory_of_images_is_read(tmp_path: Path) -> None:
    content = file(photograph())
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(content)
    (tmp_path / "secret.png").write_bytes(content)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inside.png").symlink_to(root / "deep" / "a.png")
    embedder = build(image_model(tmp_path / "m.onnx"), encoding="path", root=root)
    outside = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "deep/../../secret.png"]
    missing = ["none.png", "deep", "", "\x00", "a" * 5000, "/dev/zero"]
    found = embedder.embed([[*outside, *missing, "deep/a.png", "./inside.png", "deep/../deep/a.png"]])
    assert [each.row for each in found.problems] == list(range(10))
    assert {each.reason for each in found.problems} == {"bad_value"}
    assert all("leads out" in each.detail for each in found.problems[:4])
    assert all("secret" not in each.detail for each in found.problems)


def test_broken_huge_and_foreign_files_are_problems_of_their_records(tmp_path: Path) -> None:
    embedder = build(image_model(tmp_path / "m.onnx"), max_pixels=1600 * 1600)
    jpeg = file(photograph(), "JPEG")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    floats = io.BytesIO()
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(floats, "TIFF")
    bad = [
        jpeg[: len(jpeg) // 2],
        file(photograph())[:-30],
        bomb.getvalue(),
        file(np.zeros((1601, 1600), dtype=np.uint8)),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        floats.getvalue(),
        b"",
        "text",
        None,
    ]
    good = file(photograph())
    found = embedder.embed([[good, *bad, good]])
    assert [each.row for each in found.problems] == list(range(1, 11))
    assert [each.reason for each in found.problems] == ["bad_value"] * 9 + ["missing_field"]
    assert "1600 x 1601; at most 2560000 pixels" in found.problems[3].detail
    assert found.vectors[0].tobytes() == found.vectors[11].tobytes() and found.vectors[0].any()


def test_an_image_of_one_row_of_pixels_takes_no_more_memory_than_another(tmp_path: Path) -> None:
    embedder = build(image_model(tmp_path / "m.onnx"))
    thin = np.full((1, 60_000, 3), 90, dtype=np.uint8)
    seen = embedder.picture(file(thin))
    assert seen is not None and seen.shape == (HEIGHT, WIDTH, 3) and (seen == 90).all()


@pytest.mark.parametrize("joined", [False, True])
def test_a_vector_is_the_same_among_others_alone_and_in_any_order(tmp_path: Path, joined: bool) -> None:
    embedder = build(image_model(tmp_path / "m.onnx", joined_rows=joined))
    assert embedder._most_rows == (1 if joined else 4)
    if joined:
        return  # alone, the mean over all rows is the row itself
    column = [file(photograph(seed)) for seed in range(29)]
    column[3] = b""
    together = embedder.embed([column]).vectors
    backwards = embedder.embed([column[::-1]]).vectors
    assert backwards[::-1].tobytes() == together.tobytes()
    alone = np.concatenate([embedder.embed([[each]]).vectors for each in column])
    assert alone.tobytes() == together.tobytes()


def test_the_fingerprint_covers_what_a_vector_depends_on(tmp_path: Path) -> None:
    path = image_model(tmp_path / "m.onnx")
    first = build(path).fingerprint()
    assert build(path, encoding="base64", max_pixels=9, field="/other").fingerprint() == first
    assert build(path, preset="imagenet", scale=1 / 255, size=(HEIGHT, WIDTH)).fingerprint() == first
    others = [
        {"preset": "clip"},
        {"resize": "stretch"},
        {"crop": 0.5},
        {"interpolation": "bicubic"},
        {"mean": (0, 0, 0)},
        {"std": (1, 1, 1)},
        {"channels": "bgr"},
        {"normalise": True},
        {"output": "features"},
        {"model": image_model(tmp_path / "other.onnx", output="features")},
    ]
    assert len({first, *(build(path, **each).fingerprint() for each in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        ({"channels": 1}, {}, "Only encoders of colour images"),
        ({"layout": "nhwc"}, {"layout": "nchw"}, "Set layout: nhwc"),
        ({}, {"size": (224, 224)}, r"Set size: \[16, 20\]"),
        ({"rows": 4}, {}, "takes exactly 4 rows"),
        ({}, {"output": "penultimate"}, r"'penultimate'; there is logits \(any, 9\)"),
        ({}, {"encoding": "path", "root": "no/such/place"}, "is no directory"),
        ({"size": ("h", "w")}, {"size": (2, 2)}, r"refuses an image of \[2, 2\]"),
    ],
)
def test_a_careless_user_is_told_what_is_wrong(
    tmp_path: Path, made: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = image_model(tmp_path / "m.onnx", **made)
    with pytest.raises(InvalidSettings, match=message) as raised:
        build(path, **settings)
    assert raised.value.hint


def test_an_encoder_of_texts_is_refused(tmp_path: Path) -> None:
    from tests.small_models import text_model

    with pytest.raises(InvalidSettings, match=r"asks for input_ids \(any, any\), .* nobody feeds; there is one image"):
        build(text_model(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "settings",
    [{"encoding": "path"}, {"root": "images"}, {"size": (0, 5)}, {"std": (1, 0, 1)}, {"crop": 1.5}, {"scale": 0}],
)
def test_settings_that_cannot_mean_anything_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageSettings(field="/i", model=Path("m.onnx"), **settings)


@pytest.mark.parametrize("package", ["onnxruntime", "PIL"])
def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = image_model(tmp_path / "m.onnx")
    for name in [package, *(each for each in sys.modules if each.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'driftd\[image\]'"):
        build(path)


def test_a_report_shows_the_images_of_records(tmp_path: Path) -> None:
    image_model(tmp_path / "m.onnx")
    (tmp_path / "driftd.yaml").write_text(
        f"""
database: sqlite:///{tmp_path}/driftd.db
references: {tmp_path}/references
models:
  shop:
    source: {{kind: files, path: "{tmp_path}/*.jsonl"}}
    record: {{id: /id, time: {{path: /ts, unit: ms}}, keep: {{photo: /i}}}}
    spaces: {{input: {{embedder: {{kind: image, field: /i, model: "{tmp_path}/m.onnx"}}}}}}
"""
    )
    settings = load_settings(tmp_path / "driftd.yaml")
    vectors = np.random.default_rng(0).normal(size=(2000, 9)).astype(np.float32)
    saved = Reference.build(vectors).save(tmp_path / "reference")
    with Store.open(f"sqlite:///{tmp_path}/driftd.db") as store:
        store.migrate()
        path = str(tmp_path / "reference")
        store.add_reference(ReferenceRow("shop", "input", 1, path, 2000, 9, str(saved), 1_772_438_400_000, active=True))
        space = _Space(store, settings.models["shop"], "shop", "input")
        shown = space._excerpt({"photo": text(file(photograph()))})
        broken = space._excerpt({"photo": "no image"})
    assert shown.pixels is not None and shown.pixels.shape == (HEIGHT, WIDTH, 3)
    assert broken.pixels is None and "no image" in broken.text
