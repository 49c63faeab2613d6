r"""Make a face recogniser forget people, one request after another: `gs-lora forget` with a face model.

From a checkpoint of the papers' code, which is converted first:

    accelerate launch examples/forget_faces.py --dataset_name data/faces --forget "person_34,person_23;person_10" \
        --checkpoint face.pth --scale 64 --margin 0.35 --output runs/faces

From a converted folder: `--model_name_or_path face-model` instead of `--checkpoint`. Without either, a Face
Transformer is pre-trained on the data first (`--image_size`, `--pretrain_epochs`, ...).

The command prints the accuracy with and without the margin, and scores of verification, for forgotten and kept people.
It draws both to `private_pictures` in the output folder. These pictures show faces that are to be forgotten: do not
publish them.
"""

import sys

from gs_lora_peft.cli import main

if __name__ == "__main__":
    main(["forget", "--pretrain", *sys.argv[1:]])
