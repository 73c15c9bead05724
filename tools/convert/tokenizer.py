#!/usr/bin/env python3
"""Writes FOLDER/tokenizer.json for a checkpoint whose tokenizer chiasm does not read by itself.

    python tools/convert/tokenizer.py FOLDER

transformers loads the folder's own tokenizer files and writes them in the one form. Needs transformers, tokenizers,
and, for tokenizer.model files, sentencepiece and protobuf (tested: 5.23.0, 0.23.3, 0.2.3, 7.36.2). Existing files are
not touched; code in the folder is not run.
"""
import os
import sys


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(__doc__.strip())
    out = os.path.join(sys.argv[1], "tokenizer.json")
    if os.path.exists(out):
        sys.exit("%s exists already" % out)
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
    if not hasattr(tok, "backend_tokenizer"):
        sys.exit("%s: transformers has no tokenizer.json form of %s" % (sys.argv[1], type(tok).__name__))
    tok.backend_tokenizer.no_truncation()
    tok.backend_tokenizer.no_padding()
    tok.backend_tokenizer.save(out)
    print("wrote %s (%s)" % (out, type(tok).__name__))


main()
