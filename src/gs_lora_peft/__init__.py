"""Continual forgetting for pre-trained models: GS-LoRA as a PEFT adapter and a Trainer.

`import gs_lora_peft` makes the tuner type `GS_LORA` known to PEFT, as soon as PEFT itself is imported, and the face
model to transformers' Auto classes. Everything else is imported on first use.
"""

from importlib import import_module
from importlib.metadata import version

import lazy_loader
from wrapt import when_imported

from .compat import register_face_model

__version__ = version("gs-lora-peft")

# torch, PEFT, the Trainer and `datasets` take seconds to import; reading a ledger needs none of them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# The tuner follows PEFT: when the hook runs, PEFT is complete and has imported all that the tuner needs.
when_imported("peft")(lambda module: import_module(".tuner", __name__))
# No hook imports the face model: transformers finds it by name.
register_face_model()
