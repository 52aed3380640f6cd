"""Makes tests/fixtures/pictures/*: pictures of every kind, and the tensors that transformers' image processors make of them.

NAME.png, NAME.jpg           the pictures
NAME.jpg.png                 Pillow's reading of a JPEG
processors/NAME/             a `preprocessor_config.json` as transformers saves it
expected.json                for each processor and picture: the grid of tiles, the shape and the SHA-256 of the tensor (f32, little-endian)

The picture is read by Pillow, turned by its EXIF orientation, and given to the torchvision backend. Of a grey picture of 16 bits Pillow
cuts values above 255 to white; there the high byte of each value is what the tensor is made of.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_pictures.py
"""

import hashlib
import json
import shutil
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPImageProcessor, Idefics3ImageProcessor, LlavaImageProcessor, SiglipImageProcessor

import tiny

FOLDER = tiny.FIXTURES / "pictures"
SIZES = [(1, 1), (1, 9), (9, 1), (5, 7), (7, 5), (16, 16), (31, 33), (40, 13), (13, 40), (64, 64), (57, 23), (96, 95), (3, 80), (80, 3)]
ORIENTATION = 0x0112


def scene(width, height, seed, channels=3):
    """Smooth colours with edges and some noise: a wrong filter, order or rounding shows."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    planes = []
    for channel in range(channels):
        wave = np.sin(6.3 * (x * random.uniform(0.5, 3) + y * random.uniform(0.5, 3)) + channel)
        edge = np.where(x + y > random.uniform(0.3, 1.2), 0.5, -0.5)
        planes.append(wave + edge + 0.15 * random.standard_normal((height, width)))
    values = np.clip(127 + 80 * np.stack(planes, -1), 0, 255)
    return np.round(values).astype(np.uint8)


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def interlaced(values, depth=8):
    """A PNG file in seven passes, which Pillow reads and does not write. `values`: [height, width] or [height, width, 3]; samples of
    `depth` bits."""
    height, width = values.shape[:2]
    rows = b""
    for x, y, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = values[y::dy, x::dx]
        for row in part if part.shape[1] else []:
            bits = np.unpackbits(row.reshape(-1, 1), axis=1)[:, 8 - depth :]
            rows += b"\0" + np.packbits(bits.reshape(-1)).tobytes()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 0 if values.ndim == 2 else 2, 0, 0, 1])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pictures():
    """Name, image or bytes, options of saving."""
    yield "interlaced.png", interlaced(scene(27, 19, 50)), {}
    yield "interlaced_2.png", interlaced(scene(13, 11, 51, 1)[..., 0] >> 6, 2), {}
    for index, (width, height) in enumerate(SIZES):
        yield f"size_{width}x{height}.png", Image.fromarray(scene(width, height, index)), {}
    yield "grey.png", Image.fromarray(scene(33, 21, 20, 1)[..., 0], "L"), {}
    yield "grey_alpha.png", Image.fromarray(scene(21, 33, 21, 2), "LA"), {}
    yield "alpha.png", Image.fromarray(scene(37, 26, 22, 4), "RGBA"), {}
    clear = scene(20, 20, 23, 4)
    clear[..., 3] = 0
    yield "clear.png", Image.fromarray(clear, "RGBA"), {}
    yield "bits_1.png", Image.fromarray(scene(29, 18, 24, 1)[..., 0], "L").convert("1"), {}
    palette = Image.fromarray(scene(34, 22, 25)).quantize(16)
    yield "palette.png", palette, {}
    yield "palette_clear.png", palette.copy(), {"transparency": 3}
    yield "palette_4.png", Image.fromarray(scene(19, 22, 26)).quantize(4), {"bits": 2}
    yield "key_colour.png", Image.fromarray(np.where(scene(24, 24, 27) > 127, 255, 0).astype(np.uint8)), {"transparency": (255, 0, 0)}
    yield "key_grey.png", Image.fromarray(np.where(scene(24, 24, 28, 1)[..., 0] > 127, 200, 10).astype(np.uint8), "L"), {"transparency": 10}
    wide = scene(26, 17, 29, 1)[..., 0].astype(np.uint16) * 257
    yield "grey_16.png", Image.fromarray(wide), {}
    yield "white.png", Image.new("RGB", (40, 30), (255, 255, 255)), {}
    yield "black.png", Image.new("RGB", (30, 40)), {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"exif_{orientation}.png", Image.fromarray(scene(23, 14, 30 + orientation)), {"exif": exif}
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    yield "exif_6.jpg", Image.fromarray(scene(47, 30, 40)), {"exif": exif, "quality": 92, "subsampling": 0}
    yield "halved.jpg", Image.fromarray(scene(64, 47, 41)), {"quality": 85, "subsampling": 2}
    yield "grey.jpg", Image.fromarray(scene(41, 33, 42, 1)[..., 0], "L"), {"quality": 90}
    yield "progressive.jpg", Image.fromarray(scene(50, 50, 43)), {"quality": 75, "progressive": True}
    yield "rough.jpg", Image.fromarray(scene(80, 60, 44)), {"quality": 30}


PROCESSORS = {
    "tiles": Idefics3ImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}, image_mean=[0.5] * 3,
                                    image_std=[0.5] * 3, do_image_splitting=True),
    "one_tile": Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, image_mean=[0.5] * 3,
                                       image_std=[0.5] * 3, do_image_splitting=False),
    "clip": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "llava": LlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_pad=True),
    "siglip": SiglipImageProcessor(size={"height": 16, "width": 16}, resample=2),
}  # fmt: skip


def upright(path):
    """The picture as a processor gets it."""
    image = Image.open(path)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8), "L")
    return ImageOps.exif_transpose(image)


def main():
    warnings.filterwarnings("ignore")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    names = []
    for name, image, options in pictures():
        if isinstance(image, bytes):
            (FOLDER / name).write_bytes(image)
        else:
            image.save(FOLDER / name, **options)
        names.append(name)
        if name.endswith(".jpg"):
            ImageOps.exif_transpose(Image.open(FOLDER / name)).convert("RGB").save(FOLDER / (name + ".png"))
    expected = {}
    for kind, processor in PROCESSORS.items():
        processor.save_pretrained(FOLDER / "processors" / kind)
        of_kind = {}
        for name in names:
            # Of a JPEG, the tensor of Pillow's pixels.
            path = FOLDER / (name + ".png" if name.endswith(".jpg") else name)
            more = {"return_row_col_info": True} if hasattr(processor, "do_image_splitting") else {}
            made = processor(images=[upright(path)], return_tensors="pt", **more)
            values = made["pixel_values"]
            values = values[0] if values.dim() == 5 else values
            assert values.dtype == torch.float32
            digest = hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
            grid = [made["rows"][0][0], made["cols"][0][0]] if more else [0, 0]
            of_kind[name] = {"shape": list(values.shape), "grid": grid, "sha256": digest}
        expected[kind] = of_kind
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{len(names)} pictures, {sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())} bytes")


if __name__ == "__main__":
    main()
