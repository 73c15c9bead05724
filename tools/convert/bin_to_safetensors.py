#!/usr/bin/env python3
"""Writes safetensors beside the pickles of a checkpoint folder: pytorch_model.bin, or its index and shards.

    python tools/convert/bin_to_safetensors.py FOLDER

A pickle can run any code when it is read, so chiasm does not read one; this script lets torch read tensors and nothing else
(weights_only). Names, shapes and dtypes stay; tensors that share memory are written once each under their own names.
Existing files are not touched. Needs torch and safetensors (tested: 2.13.0, 0.8.0).
"""
import json
import os
import re
import sys


def shards(folder):
    """[(pickle, safetensors)] in order, and the weight map of the index (None without one)."""
    index = os.path.join(folder, "pytorch_model.bin.index.json")
    if not os.path.exists(index):
        return [("pytorch_model.bin", "model.safetensors")], None
    with open(index, encoding="utf-8") as f:
        names = json.load(f)["weight_map"]
    files = sorted(set(names.values()))
    if any(os.path.basename(f) != f for f in files):
        sys.exit("%s names files outside the folder" % index)
    out = [re.sub(r"^pytorch_model(.*)\.bin$", r"model\1.safetensors", f) for f in files]
    if any(a == b for a, b in zip(files, out)):
        out = ["model-%05d-of-%05d.safetensors" % (i + 1, len(files)) for i in range(len(files))]
    return list(zip(files, out)), names


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(__doc__.strip())
    folder = sys.argv[1]
    pairs, names = shards(folder)
    made = [b for _, b in pairs] + (["model.safetensors.index.json"] if names else [])
    for name in [a for a, _ in pairs]:
        if not os.path.exists(os.path.join(folder, name)):
            sys.exit("%s is missing in %s" % (name, folder))
    for name in made:
        if os.path.exists(os.path.join(folder, name)):
            sys.exit("%s exists already in %s" % (name, folder))
    import torch
    from safetensors.torch import save_file
    where, total = {}, 0
    for source, target in pairs:
        state = torch.load(os.path.join(folder, source), map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        seen, out = set(), {}
        for key, t in state.items():
            if not isinstance(t, torch.Tensor):
                print("%s: '%s' is no tensor, left out" % (source, key))
                continue
            t = t.detach().contiguous()
            if t.data_ptr() in seen or t.untyped_storage().nbytes() != t.numel() * t.element_size():
                t = t.clone()
            seen.add(t.data_ptr())
            out[key], where[key] = t, target
            total += t.numel() * t.element_size()
        path = os.path.join(folder, target)
        save_file(out, path + ".part", metadata={"format": "pt"})
        os.replace(path + ".part", path)
        print("wrote %s: %d tensors" % (path, len(out)))
        del state, out
    if names:
        path = os.path.join(folder, "model.safetensors.index.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"metadata": {"total_size": total}, "weight_map": where}, f, indent=2, sort_keys=True)
            f.write("\n")
        print("wrote %s" % path)


main()
