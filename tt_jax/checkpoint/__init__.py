"""A model's folder: `config.json`, a `manifest.json`, the tokenizer, and orbax arrays per part.

FOLDER/config.json      sizes and kind, readable
FOLDER/manifest.json    where each array came from (written by `convert`)
FOLDER/tokenizer.model  sentencepiece
FOLDER/vocabulary.json  of a model that knows few words: those, and what it can draw
FOLDER/{dit,vae,text,tiny_vae}/  arrays; a folder may hold only some of the parts

What isn't there is taken from the folder that config.json names as "shared", if it names one.
"""

from tt_jax.checkpoint.arrays import (
    abstract,
    array_dtypes,
    cast,
    default_dtype,
    flatten,
    load_arrays,
    load_part,
    nest,
    save_arrays,
    save_part,
    shapes,
)
from tt_jax.checkpoint.folder import (
    EMBEDDED,
    HELD,
    KINDS,
    PARTS,
    VAES,
    Stored,
    find,
    inside,
    load_tokenizer,
    read_config,
    read_manifest,
    read_stored,
    vae_part,
    write_config,
    write_stored,
    write_vocabulary,
)
from tt_jax.checkpoint.quantised import quantised

__all__ = [
    "EMBEDDED",
    "HELD",
    "KINDS",
    "PARTS",
    "VAES",
    "Stored",
    "abstract",
    "array_dtypes",
    "cast",
    "default_dtype",
    "find",
    "flatten",
    "inside",
    "load_arrays",
    "load_part",
    "load_tokenizer",
    "nest",
    "quantised",
    "read_config",
    "read_manifest",
    "read_stored",
    "save_arrays",
    "save_part",
    "shapes",
    "vae_part",
    "write_config",
    "write_stored",
    "write_vocabulary",
]
