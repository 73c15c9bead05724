"""Writes the model as an ordinary Hugging Face folder, weights in bf16."""
import json
import os
import pathlib
import shutil
import tempfile

from transformers import GenerationConfig, LlamaForCausalLM

from model import CLIP_MEAN, CLIP_STD, IMAGE, PATCH

PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
    "do_resize": True, "size": {"shortest_edge": IMAGE}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": IMAGE, "width": IMAGE},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "do_convert_rgb": True}
PROCESSOR = {"processor_class": "LlavaProcessor", "patch_size": PATCH,
             "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
             "image_token": "<image>"}


def export(llava, tok, folder):
    """The files appear by rename, so that a reader never meets half a file."""
    folder = pathlib.Path(folder)
    llava.generation_config = GenerationConfig(
        bos_token_id=tok.token_to_id("<s>"), eos_token_id=tok.token_to_id("</s>"),
        pad_token_id=tok.token_to_id("<pad>"), do_sample=False, max_new_tokens=32)
    write(llava, folder, (("preprocessor_config.json", PREPROCESSOR),
                          ("processor_config.json", PROCESSOR)))


def export_text(llava, tok, folder, beside):
    """The decoder alone, as a language model of its own with the tokenizer `beside`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    c = llava.config.text_config
    alone = LlamaForCausalLM(c).to(llava.dtype)
    alone.model.load_state_dict(llava.model.language_model.state_dict())
    alone.tie_weights()
    alone.generation_config = GenerationConfig(
        bos_token_id=c.bos_token_id, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id,
        do_sample=False, max_new_tokens=32)
    tok.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(pathlib.Path(beside) / name, folder / name)
    write(alone, folder, ())


def write(model, folder, settings):
    part = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".export-"))
    model.save_pretrained(part)
    for name, value in settings:
        (part / name).write_text(json.dumps(value, indent=1) + "\n")
    for file in part.iterdir():
        os.chmod(file, 0o644)
        os.replace(file, folder / file.name)
    shutil.rmtree(part)
