r"""Make a detector forget object categories, one request after another: `gs-lora forget` with a detector.

    accelerate launch examples/forget_detection.py --model_name_or_path hustvl/yolos-tiny --dataset_name cppe-5 \
        --forget "Mask;Gloves" --output runs/cppe

Data: a Hub id or a local folder (parquet, `save_to_disk`) with annotated boxes, or COCO's own format: a folder with
`annotations/instances_train2017.json`, `annotations/instances_val2017.json` and the images in `train2017` and
`val2017`. Models: any detector that `DetectionObjective` names, by Hub id or folder.

Settings may come from a YAML file; the command line takes precedence. `--config examples/benchmarks/coco.yaml` is the
papers' protocol on COCO. The command prints the AP of forgotten and kept categories, and draws the same test images
before and after to `private_pictures` in the output folder.
"""

import sys

from gs_lora_peft.cli import main

if __name__ == "__main__":
    main(["forget", *sys.argv[1:]])
