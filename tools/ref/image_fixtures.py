#!/usr/bin/env python3
"""Pictures and what Pillow and transformers make of them, for tests/test_image.c.

Pinned: pillow 13.0.0, transformers 5.23.0, torch 2.13.0, numpy, safetensors (tools/ref/requirements.txt where present).
Image processors: the PIL classes (CLIPImageProcessorPil, LlavaImageProcessorPil, BlipImageProcessorPil,
SiglipImageProcessorPil), not the torchvision ones, which resize with other arithmetic.

    python tools/ref/image_fixtures.py      # writes tests/fixtures/image and fuzz/corpus/image, about 1 MB together

Everything is seeded. Results are kept as FNV-1a-64 hashes (cases.json), a few as whole arrays (pixels.safetensors).
"""
import io
import json
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

OUT = "tests/fixtures/image"
FUZZ = "fuzz/corpus/image"
rng = np.random.default_rng(20240)


def fnv64(data):
    h = 14695981039346656037
    for b in bytes(data):
        h = ((h ^ b) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return "%016x" % h


def gradient(w, h):
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + 2 * y) % 256], -1)
    return a.astype(np.uint8)


def waves(w, h):
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([np.sin(x / 3.1) * 110 + 128, np.cos(y / 2.3) * 110 + 128, np.sin(x * y / 90) * 120 + 128], -1)
    return a.astype(np.uint8)


def noise(w, h):
    return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)


def strokes(w, h):
    im = Image.new("RGB", (w, h), (250, 250, 240))
    d = ImageDraw.Draw(im)
    for _ in range(3 + w * h // 400):
        p = [int(v) for v in rng.integers(0, [w, h, w, h])]
        d.line(p, fill=tuple(int(c) for c in rng.integers(0, 120, 3)), width=int(rng.integers(1, 4)))
    return np.array(im)


# ---- a PNG writer of our own: every colour type, depth and interlace, which Pillow does not write --------------------
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_rows(a, depth):
    """a: [h][w][channels] sample values -> filtered (type 0) scanlines."""
    out = b""
    for row in a:
        if depth == 8:
            out += b"\0" + row.astype(np.uint8).tobytes()
        elif depth == 16:
            out += b"\0" + row.astype(">u2").tobytes()
        else:
            bits = ((row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
            out += b"\0" + np.packbits(bits.reshape(-1)).tobytes()
    return out


def png(a, color, depth, palette=None, trns=None, interlace=False, header=None):
    h, w = a.shape[:2]
    if interlace:
        raw = b""
        for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
            part = a[y0::dy, x0::dx]
            if part.size:
                raw += pack_rows(part, depth)
    else:
        raw = pack_rows(a, depth)
    hw, hh = header or (w, h)
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", hw, hh, depth, color, 0, 0, int(interlace)))
    if palette is not None:
        out += chunk(b"PLTE", bytes(int(v) for v in palette))
    if trns is not None:
        out += chunk(b"tRNS", bytes(int(v) for v in trns))
    return out + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def put(folder, name, data):
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)


def save_png(name, a):
    Image.fromarray(a).save(f"{OUT}/{name}", optimize=True)


def rgb_of(name):
    with Image.open(f"{OUT}/{name}") as im:
        return np.array(im.convert("RGB"))


def decode_cases(cases):
    for color, channels, depths in [(0, 1, (1, 2, 4, 8)), (2, 3, (8,)), (3, 1, (1, 2, 4, 8)), (4, 2, (8,)), (6, 4, (8,))]:
        for depth in depths:
            for inter in (False, True):
                w, h = (13, 7) if not inter else (11, 17)
                top = 1 << depth
                palette = rng.integers(0, 256, 3 * max(2, top * 3 // 4)) if color == 3 else None
                a = rng.integers(0, top if color != 3 else len(palette) // 3, (h, w, channels))
                if color == 3 and depth > 1:
                    a[0, 0] = top - 1  # past the palette
                trns = {0: [0, 1], 2: [0, 9, 0, 9, 0, 9], 3: [0, 128]}.get(color) if inter else None
                name = f"c{color}d{depth}{'i' if inter else ''}.png"
                put(OUT, name, png(a, color, depth, palette, trns, inter))
                cases.append(name)


SIZES = [(1, 1), (1, 97), (97, 1), (2, 3), (3, 2), (5, 7), (17, 31), (31, 17), (64, 64), (75, 100), (101, 99), (337, 41), (41, 337),
         (127, 3), (3, 127), (53, 53), (200, 30), (30, 200), (23, 149), (149, 23), (61, 88), (160, 120), (7, 333), (211, 97)]
TARGETS = [(1, 1), (2, 5), (24, 24), (33, 70), (70, 33), (129, 65), (65, 129), (3, 200)]


def main():
    os.makedirs(OUT, exist_ok=True)
    os.makedirs(FUZZ, exist_ok=True)
    for d in (OUT, FUZZ):
        for f in os.listdir(d):
            os.unlink(os.path.join(d, f))
    cases = {"made_by": "tools/ref/image_fixtures.py, pillow " + Image.__version__, "decode": [], "resize": [], "jpeg": [], "webp": [],
             "preprocess": []}
    names = []
    decode_cases(names)

    makers = [gradient, waves, strokes, noise]
    for i, (w, h) in enumerate(SIZES):
        name = f"r{w}x{h}.png"
        maker = makers[i % 4] if w * h <= 12000 or i % 4 != 3 else strokes
        save_png(name, maker(w, h))
        names.append(name)
        im = Image.open(f"{OUT}/{name}")
        targets = [TARGETS[i % len(TARGETS)], TARGETS[(i * 3 + 1) % len(TARGETS)], (w, 2 * h + 1), (w // 2 + 1, h), (2 * w + 1, h // 3 + 1)]
        for tw, th in targets:
            for how in (0, 1, 2, 3):
                got = im.resize((tw, th), how)
                cases["resize"].append([name, tw, th, how, fnv64(got.tobytes())])
    for name in names:
        a = rgb_of(name)
        cases["decode"].append([name, a.shape[1], a.shape[0], fnv64(a.tobytes())])

    jpegs = [(1, 1), (8, 8), (17, 9), (33, 50), (64, 48), (61, 23)]
    for i, (w, h) in enumerate(jpegs * 2):
        sub, prog, grey = i % 3, i >= 6, i % 4 == 3
        im = Image.fromarray([waves, noise, strokes][i % 3](w, h))
        name = f"j{i}.jpg"
        (im.convert("L") if grey else im).save(f"{OUT}/{name}", quality=[60, 85, 95][i % 3], subsampling=sub, progressive=prog)
        save_png(f"j{i}-decoded.png", rgb_of(name))
        cases["jpeg"].append([name, f"j{i}-decoded.png"])

    preprocess(cases)
    bad_files()
    more_kinds(cases)
    with open(f"{OUT}/cases.json", "w") as f:
        f.write("{\n" + ",\n".join(
            f'"{k}": ' + (json.dumps(v) if isinstance(v, str) else "[\n" + ",\n".join(json.dumps(x) for x in v) + "\n]")
            for k, v in cases.items()) + "\n}\n")


# ---- what came later: 16 bits, CMYK, WebP, orientation. A generator of its own leaves the files above as they are -----
def without_adobe(b):
    """A JPEG without its APP14 segment."""
    at = b.find(b"\xff\xee")
    return b[:at] + b[at + 2 + struct.unpack(">H", b[at + 2:at + 4])[0]:]


def as_ycck(b):
    at = b.find(b"Adobe")
    return b[:at + 11] + b"\x02" + b[at + 12:]


def more_kinds(cases):
    own = np.random.default_rng(20241)
    for color, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        for inter in (False, True):
            a = own.integers(0, 65536, (7, 13, channels))
            a[0, :6] = np.array([0, 1, 254, 255, 256, 65535])[:, None]
            trns = {0: [0, 1], 2: [0, 1, 0, 1, 0, 1]}.get(color) if inter else None
            name = f"c{color}d16{'i' if inter else ''}.png"
            put(OUT, name, png(a, color, 16, None, trns, inter))
            put(FUZZ, name, png(a, color, 16, None, trns, inter))
            cases["decode"].append([name, 13, 7, fnv64(rgb_of(name).tobytes())])

    def jpeg(name, data):
        put(OUT, name, data)
        save_png(name[:-4] + "-decoded.png", rgb_of(name))
        cases["jpeg"].append([name, name[:-4] + "-decoded.png"])

    smooth = np.concatenate([waves(48, 33), gradient(48, 33)[..., 1:2]], -1)
    for name, prog in (("k0.jpg", False), ("k1.jpg", True)):
        out = io.BytesIO()
        Image.fromarray(smooth, mode="CMYK").save(out, "JPEG", quality=88, progressive=prog)
        jpeg(name, out.getvalue())
        put(FUZZ, "ok-" + name, out.getvalue())
    jpeg("k2.jpg", as_ycck(out.getvalue()))
    jpeg("k3.jpg", without_adobe(out.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(waves(40, 25)).save(out, "JPEG", quality=92, exif=exif)
    jpeg("turned.jpg", out.getvalue())
    webp_cases(cases, own, exif)


def webp_cases(cases, own, exif):
    alpha = np.dstack([noise_of(own, 31, 22), own.integers(0, 256, (22, 31), dtype=np.uint8)])
    alpha[:4, :, 3] = 0
    soft = np.dstack([waves(45, 37), gradient(45, 37)[..., 0]])
    flat = Image.fromarray(gradient(50, 40)).quantize(7).convert("RGB")
    frames = [Image.fromarray(waves(24, 18)), Image.fromarray(noise_of(own, 24, 18))]
    lossless = dict(lossless=True, method=6)
    kinds = {
        "w0": (Image.fromarray(noise_of(own, 33, 17)), dict(lossless), 0), "w1": (Image.fromarray(alpha), dict(lossless, exact=True), 0),
        "w2": (flat, dict(lossless), 0), "w3": (Image.fromarray(waves(1, 1)), dict(lossless), 0),
        "w4": (Image.fromarray(waves(61, 47)), dict(quality=90), 2), "w5": (Image.fromarray(strokes(64, 48)), dict(quality=25), 2),
        "w6": (Image.fromarray(soft), dict(quality=70), 2), "w7": (Image.fromarray(noise_of(own, 20, 20)).convert("L"), dict(quality=80), 2),
        "w8": (Image.fromarray(waves(30, 50)), dict(lossless, exif=exif), 0), "w9": (frames[0], dict(lossless, save_all=True, append_images=frames[1:]), 0),
        "w10": (frames[1].convert("RGBA"), dict(quality=60, save_all=True, append_images=[frames[0]]), 2),
    }
    for name, (im, opts, tolerance) in kinds.items():
        out = io.BytesIO()
        im.save(out, "WEBP", **opts)
        b = out.getvalue()
        put(OUT, name + ".webp", b)
        save_png(name + "-decoded.png", rgb_of(name + ".webp"))
        cases["webp"].append([name + ".webp", name + "-decoded.png", tolerance])
        if len(b) < 3000: put(FUZZ, "ok-" + name + ".webp", b)
        if name in ("w2", "w5", "w6", "w9"):
            for cut in (14, 25, len(b) // 2, len(b) - 5): put(FUZZ, f"bad-cut{cut}-{name}.webp", b[:cut])
    head = lambda kind, data: b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBP" + kind + struct.pack("<I", len(data)) + data
    put(FUZZ, "bad-16383x16383.webp", head(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(7)))
    put(FUZZ, "bad-canvas.webp", head(b"VP8X", bytes([2, 0, 0, 0]) + struct.pack("<I", 40000)[:3] + struct.pack("<I", 40000)[:3]))


def noise_of(gen, w, h):
    return gen.integers(0, 256, (h, w, 3), dtype=np.uint8)


MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CONFIGS = {
    # Current and older styles of one and the same request, then others.
    "clip-now.json": {"crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
                      "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_processor_type": "CLIPImageProcessor",
                      "image_std": STD, "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 56}},
    "clip-2021.json": {"crop_size": 56, "do_center_crop": True, "do_normalize": True, "do_resize": True,
                       "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3, "size": 56},
    "clip-nulls.json": {"image_processor_type": "CLIPImageProcessorFast", "crop_size": {"height": 40, "width": 64}, "size": {"shortest_edge": 48},
                        "do_pad": None, "pad_size": None, "resample": None, "image_mean": None, "rescale_factor": None, "device": None},
    "llava-pad.json": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 42},
                       "crop_size": {"height": 42, "width": 42}, "image_mean": MEAN, "image_std": STD},
    "blip.json": {"image_processor_type": "BlipImageProcessor", "size": {"height": 48, "width": 60}, "image_mean": MEAN, "image_std": STD},
    "siglip.json": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 33, "width": 33}, "resample": 2, "image_mean": 0.5,
                    "image_std": 0.5},
    "no-rescale.json": {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}, "do_rescale": False, "resample": 1},
    "raw.json": {"do_resize": False, "do_normalize": False, "crop_size": {"height": 64, "width": 50}},
}
CLASS = {"CLIPImageProcessor": CLIPImageProcessorPil, "CLIPFeatureExtractor": CLIPImageProcessorPil,
         "CLIPImageProcessorFast": CLIPImageProcessorPil, "LlavaImageProcessor": LlavaImageProcessorPil,
         "BlipImageProcessor": BlipImageProcessorPil, "SiglipImageProcessor": SiglipImageProcessorPil}


def preprocess(cases):
    pictures = ["r1x97.png", "r2x3.png", "r64x64.png", "r75x100.png", "r337x41.png", "r41x337.png", "r160x120.png", "c6d8.png", "c3d4.png"]
    arrays = {}
    for cfg, values in CONFIGS.items():
        with open(f"{OUT}/{cfg}", "w") as f:
            json.dump(values, f, indent=1)
        kind = values.get("image_processor_type") or values.get("feature_extractor_type") or "CLIPImageProcessor"
        proc = CLASS[kind](**{k: v for k, v in values.items() if v is not None and not k.endswith("_type")})
        for pic in pictures:
            # As the published pipelines do: convert("RGB") first, so that alpha is dropped and not laid on white.
            x = proc(Image.open(f"{OUT}/{pic}").convert("RGB"), return_tensors="np")["pixel_values"][0]
            x = np.ascontiguousarray(x, dtype=np.float32)
            cases["preprocess"].append([cfg, pic, x.shape[2], x.shape[1], fnv64(x.tobytes())])
            if (cfg, pic) in (("clip-now.json", "r160x120.png"), ("llava-pad.json", "r337x41.png"), ("no-rescale.json", "c6d8.png")):
                arrays[f"{cfg}/{pic}"] = x
    save_file(arrays, f"{OUT}/pixels.safetensors")
    with open(f"{OUT}/processor_config.json", "w") as f:
        json.dump({"image_processor": CONFIGS["clip-now.json"], "patch_size": 14, "processor_class": "LlavaProcessor"}, f, indent=1)
    bad = {"bad-type.json": {"image_processor_type": "Qwen2VLImageProcessor"}, "bad-resample.json": {"resample": 5},
           "bad-size.json": {"size": {"shortest_edge": 0}}, "bad-large.json": {"size": 4097}, "bad-edge.json": {"size": {"longest_edge": 300}},
           "bad-std.json": {"image_std": [0.5, 0, 0.5]}, "bad-mean.json": {"image_mean": [0.5, "x", 0.5]}}
    for name, v in bad.items():
        with open(f"{OUT}/{name}", "w") as f:
            json.dump(v, f)


def bad_files():
    """Seeds for the fuzzer; the names starting with bad- must be refused, the others decoded."""
    tiny = rng.integers(0, 256, (6, 5, 3))
    good = png(tiny, 2, 8)
    seeds = {
        "rgb.png": good,
        "grey1.png": png(rng.integers(0, 2, (9, 9, 1)), 0, 1, interlace=True),
        "palette2.png": png(rng.integers(0, 4, (5, 9, 1)), 3, 2, palette=rng.integers(0, 256, 9)),
        "rgba.png": png(rng.integers(0, 256, (4, 4, 4)), 6, 8),
        "bad-60000.png": png(tiny, 2, 8, header=(60000, 60000)),
        "bad-huge.png": png(tiny, 2, 8, header=(0x7FFFFFFF, 0x7FFFFFFF)),
        "bad-zero.png": png(tiny, 2, 8, header=(0, 5)),
        "bad-claims-9000.png": png(tiny, 2, 8, header=(9000, 9000)),
        "bad-claims-more-rows.png": png(tiny, 2, 8, header=(5, 60)),
        "bad-no-palette.png": png(rng.integers(0, 4, (3, 3, 1)), 3, 2),
        "bad-crc.png": good[:45] + bytes([good[45] ^ 255]) + good[46:],
        "bad-empty-idat.png": good[:33] + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "bad-header.png": good[:20],
        "bad-text.png": b"this is no picture\n",
        "bad-webp.png": b"RIFF\x20\0\0\0WEBPVP8 " + bytes(24),
        "bad-gif.png": b"GIF89a" + bytes(20),
    }
    for cut in (8, 30, 33, 41, len(good) // 2, len(good) - 13):
        seeds[f"bad-cut{cut}.png"] = good[:cut]
    for name in ("j1.jpg", "j3.jpg", "j8.jpg"):
        with open(f"{OUT}/{name}", "rb") as f:
            b = f.read()
        seeds["ok-" + name] = b
        for cut in (3, 20, len(b) // 2, len(b) * 4 // 5):
            seeds[f"bad-cut{cut}-{name}"] = b[:cut]
        at = next(b.find(bytes([0xFF, m])) for m in (0xC0, 0xC2) if b.find(bytes([0xFF, m])) > 0)
        seeds["bad-60000-" + name] = b[:at + 5] + struct.pack(">HH", 60000, 60000) + b[at + 9:]
        seeds["bad-20000x5000-" + name] = b[:at + 5] + struct.pack(">HH", 5000, 20000) + b[at + 9:]
        seeds["bad-zero-" + name] = b[:at + 5] + struct.pack(">HH", 0, 0) + b[at + 9:]
    # Thousands of scans of the same picture: cheap to send, dear to decode.
    with open(f"{OUT}/j6.jpg", "rb") as f:
        b = f.read()
    sos = b.find(b"\xff\xda")
    end = b.find(b"\xff", sos + 2 + struct.unpack(">H", b[sos + 2:sos + 4])[0])
    while b[end + 1] == 0:
        end = b.find(b"\xff", end + 1)
    seeds["bad-scans.jpg"] = b[:sos] + b[sos:end] * 400 + b"\xff\xd9"
    for name, b in seeds.items():
        put(FUZZ, name, b)


if __name__ == "__main__":
    main()
