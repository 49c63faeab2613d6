r"""Make a classifier, a face model or a detector forget classes, one request after another: `gs-lora forget`.

Without arguments: a small ViT forgets the handwritten digits three, then seven, then zero and one.

    accelerate launch examples/forget.py

Any model and data set of the Hub, or local folders (parquet, an image folder, or `save_to_disk`):

    accelerate launch examples/forget.py \
        --model google/vit-base-patch16-224 --data frgfm/imagenette --data-config 160px \
        --forget "tench,cassette player;church" --output runs/imagenette

Settings may come from a YAML file; the command line takes precedence: `--config settings.yaml --learning_rate 5e-3`.
`--help` lists the options of this package, `--help_all` those of transformers as well. Exit codes: docs/cli.md.
"""

import sys

from gs_lora_peft.cli import main

if __name__ == "__main__":
    main(["forget", *sys.argv[1:]])
