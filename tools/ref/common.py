"""Small helpers of the reference makers: seeds, tokenizer, pictures, preprocessing, files."""
import hashlib
import json
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils import logging as hf_logging

hf_logging.disable_progress_bar()
torch.set_num_threads(1)
torch.manual_seed(0)

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
UNK, BOS, EOS, PAD, IMAGE = range(5)
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

CORPUS = [
    "USER: <image>\nWhat is the capital of this country?\nASSISTANT:",
    "USER: <image>\nWhich currency is used in the country with this flag? ASSISTANT:",
    "Which continent is the country on the left in? What colour is the circle beside the flag?",
    "The people of this nation speak a language that is also the official language of its neighbour.",
    "It's what they don't say that we've heard; I'll see you there, she's sure.",
    "A red square, a blue triangle, a green star and 17 yellow circles from 1969 to 2026.",
]


def train_tokenizer(corpus, vocab_size, single=()):
    """Byte-level BPE as GPT-2's, with <s> put in front. `single`: strings that must come out as one token."""
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator([c.replace("<image>", "") for c in corpus] + list(single) * 50, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)])
    for s in single:
        assert len(tok.encode(s, add_special_tokens=False).ids) == 1, s
    assert [tok.token_to_id(s) for s in SPECIAL] == [UNK, BOS, EOS, PAD, IMAGE]
    return tok


def save_tokenizer(tok, folder, old=False):
    """tokenizer.json and its config; `old` writes the longer form of transformers 4.3x."""
    tok.save(str(folder / "tokenizer.json"))
    config = {"add_bos_token": True, "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>",
              "model_max_length": 512, "pad_token": "<pad>", "padding_side": "left",
              "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    if old:
        config["added_tokens_decoder"] = {
            str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True} for i, s in enumerate(SPECIAL)}
        write_json(folder / "special_tokens_map.json", {
            "bos_token": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
                          "single_word": False},
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    else:
        config["image_token"] = "<image>"
    write_json(folder / "tokenizer_config.json", config)


def make_picture(width, height, seed):
    """A seeded picture with edges, flat areas, gradients and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        fx, fy, ph = rng.uniform(-0.3, 0.3, 2).tolist() + [rng.uniform(0, 6.28)]
        out[..., c] = 120 + 80 * np.sin(fx * x + fy * y + ph)
    for _ in range(5):
        x0, y0 = rng.integers(0, width - 8), rng.integers(0, height - 8)
        w, h = rng.integers(6, width // 2), rng.integers(6, height // 2)
        out[y0:y0 + h, x0:x0 + w] = rng.integers(0, 256, 3)
    out += rng.normal(0, 6, out.shape)
    return Image.fromarray(np.clip(np.round(out), 0, 255).astype(np.uint8), "RGB")


def _edges(value, what):
    """{"shortest_edge": n}, {"height": h, "width": w} or a bare number (older files) -> (shortest, (h, w))."""
    if isinstance(value, int):
        return (value, None) if what == "size" else (None, (value, value))
    if "shortest_edge" in value:
        return value["shortest_edge"], None
    return None, (value["height"], value["width"])


def preprocess(image, cfg):
    """Picture -> [3, h, w] f32 as preprocessor_config.json asks for; own code, compared with transformers' in
    tiny_models.py."""
    image = image.convert("RGB")
    if cfg.get("do_pad", False) and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in cfg["image_mean"]))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if cfg.get("do_resize", True):
        short, hw = _edges(cfg["size"], "size")
        if short:
            w, h = image.size
            long = int(short * max(w, h) / min(w, h))
            hw = (long, short) if w <= h else (short, long)
        image = image.resize((hw[1], hw[0]), cfg.get("resample", 3))
    if cfg.get("do_center_crop", False):
        _, (ch, cw) = _edges(cfg["crop_size"], "crop")
        left, top = (image.width - cw) // 2, (image.height - ch) // 2
        assert left >= 0 and top >= 0, "fixtures do not crop beyond the picture"
        image = image.crop((left, top, left + cw, top + ch))
    x = (np.asarray(image).astype(np.float64) * cfg.get("rescale_factor", 1 / 255)).astype(np.float32)
    x = (x - np.array(cfg["image_mean"], np.float32)) / np.array(cfg["image_std"], np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


def save_states(path, tensors, meta):
    """safetensors of f32 and i32 arrays, the same bytes every time (the library's own writer shuffles the metadata).
    Metadata values become strings (numbers and lists as JSON)."""
    meta = {**meta, "made_by": "python tools/ref/make_all.py"}
    head = {"__metadata__": {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(meta.items())}}
    parts, at = [], 0
    for name in sorted(tensors):
        t = tensors[name]
        t = t.detach() if isinstance(t, torch.Tensor) else torch.from_numpy(np.asarray(t))
        a = np.ascontiguousarray((t.float() if t.is_floating_point() else t.to(torch.int32)).numpy())
        head[name] = {"dtype": "F32" if a.dtype == np.float32 else "I32", "shape": list(a.shape),
                      "data_offsets": [at, at + a.nbytes]}
        parts.append(a.tobytes())
        at += a.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
