"""Continual forgetting for pre-trained models: GS-LoRA as a PEFT adapter and a Trainer.

`import gs_lora_peft` registers the tuner type `GS_LORA` with PEFT, as soon as PEFT itself is imported, and the face
model with transformers' Auto classes. Everything else is imported on first use.
"""

from importlib import import_module
from importlib.metadata import version

import lazy_loader
from wrapt import when_imported

from .compat import register_face_model

__version__ = version("gs-lora-peft")

# torch, PEFT, the Trainer and `datasets` take seconds to import. Reading a ledger needs none of them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# When this hook runs, PEFT is complete and has imported everything that the tuner needs.
when_imported("peft")(lambda module: import_module(".tuner", __name__))
# transformers finds the face model by name, so that nothing is imported for it here.
register_face_model()
